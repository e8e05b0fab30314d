"""`convert`: feature files of any tool into files that are read fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from manyhead.acmil.batch import Batch, Outcome
from manyhead.acmil.layouts.feature_file import FeatureFile
from manyhead.acmil.layouts.opening import open_features, slides_in
from manyhead.acmil.layouts.packed import write_packed
from manyhead.acmil.layouts.write import Dtype, FeatureWriter
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError, UserError

Target = Literal["h5", "packed"]
# Patches that are in memory at a time.
ROWS = 16 * 1024
OWN = ("format", "slide_id", "patch_size_level0", "num_coords", "source_layout", "unit")


@dataclass(frozen=True)
class Conversion:
    """Converts the features of one slide into one file.

    Args:
        out: Folder of the results.
        dtype: Type of the features; None keeps it.
        mpp: µm per level-0 pixel, for coordinates in µm.
    """

    out: Path
    dtype: Dtype | None = None
    mpp: float | None = None

    def __call__(self, item: tuple[str, Path]) -> Outcome:
        """Write the file.

        Raises:
            DataError: The features are damaged.
        """
        file = open_features(item[1], item[0], self.mpp)
        stored = file.stored_coords()
        unit = "none" if stored is None else stored[1]
        about = _attributes(file, unit)
        dtype = self.dtype or _dtype(file)
        shape = (file.num_patches, file.feature_dim)
        corners = {"px": np.int64, "um": np.float32}.get(unit)
        path = self.out / f"{file.slide_id}.h5"
        about |= {} if self.mpp is None else {"mpp": self.mpp}
        with FeatureWriter(path, *shape, dtype, about, corners) as writer:
            for start in range(0, file.num_patches, ROWS):
                rows = slice(start, min(start + ROWS, file.num_patches))
                writer.append(file.features(rows), None if stored is None else stored[0][rows])
        return Outcome("ok" if file.num_patches else "no tissue", file.num_patches)


def convert(
    input: Path,
    out: Path,
    /,
    to: Target = "h5",
    dtype: Dtype | None = None,
    mpp: float | None = None,
    strict: bool = False,
) -> int:
    """Convert feature files of CLAM, TRIDENT, STAMP, ACMIL, .pt or .npy into files read fast.

    Other tools store one patch a chunk, which makes reading many times slower. Attributes are
    kept. A stopped conversion to h5 goes on where it was.

    Args:
        input: Folder of feature files, or one file; layouts may be mixed.
        out: Folder to write.
        to: `h5`, one file a slide; or `packed`, one array of all slides that is mapped into
            memory, for training on many random patches.
        dtype: `float16` or `float32`; not given keeps what the files have.
        mpp: µm per level-0 pixel, for STAMP files; without it their coordinates stay in µm.
        strict: Fail when one slide did.
    """
    where = slides_in(input)
    if to == "packed":
        return _pack(where, out, dtype, mpp)
    if to != "h5":
        raise ConfigError(f"to: {to!r} is unknown; use h5 or packed")
    if out.resolve() in {path.resolve().parent for path in where.values()}:
        raise ConfigError(f"out: {out} is the folder that is converted; choose another")
    items = {name: (name, path) for name, path in where.items()}
    done = partial(_is_complete, out, where, dtype)
    return Batch(Conversion(out, dtype, mpp), out, "converting slides", done).run(
        items, strict=strict
    )


def _pack(where: Mapping[str, Path], out: Path, dtype: Dtype | None, mpp: float | None) -> int:
    if out.exists():
        raise UserError(f"out: {out} exists; choose another name")
    files = [open_features(path, name, mpp) for name, path in where.items()]
    check_widths(files)
    kept = dtype or ("float16" if all(_dtype(file) == "float16" for file in files) else "float32")
    out.parent.mkdir(parents=True, exist_ok=True)
    count = write_packed(files, out, kept)
    console.result(f"written: {out} ({len(files)} slides, {count:,} patches)")
    return 0


def check_widths(files: Sequence[FeatureFile]) -> None:
    """Refuse features of different encoders.

    Raises:
        DataError: Two widths; names a slide of each.
    """
    full = [file for file in files if file.num_patches]
    for file in full:
        if file.feature_dim != full[0].feature_dim:
            raise DataError(
                f"features of {file.slide_id} are {file.feature_dim} wide, those of "
                f"{full[0].slide_id} {full[0].feature_dim}; use the files of one encoder"
            )


def _dtype(file: FeatureFile) -> Dtype:
    if not file.num_patches:
        return "float16"
    return "float16" if file.features(slice(0, 1)).dtype == np.float16 else "float32"


def _attributes(file: FeatureFile, unit: str) -> dict[str, Any]:
    kept = {name: value for name, value in file.metadata.items() if name not in OWN}
    encoder = kept.get("encoder") or kept.get("extractor")
    return kept | {
        "slide_id": file.slide_id,
        "patch_size_level0": file.patch_size_level0,
        "encoder": encoder,
        "source_layout": file.metadata.get("source_layout", file.layout),
        "num_coords": file.num_patches,
        "unit": "um" if unit == "um" else None,
    }


def _is_complete(out: Path, where: Mapping[str, Path], dtype: Dtype | None, slide_id: str) -> bool:
    """Whether an earlier start has written the file.

    Raises:
        ConfigError: There is another file of that name.
    """
    path = out / f"{slide_id}.h5"
    if not path.is_file():
        return False
    written = open_features(path, slide_id)
    if "source_layout" not in written.metadata:
        raise ConfigError(f"out: {path} is not of this command; choose another folder")
    if dtype and written.num_patches and _dtype(written) != dtype:
        raise ConfigError(
            f"out: {path} holds {_dtype(written)}, not {dtype}; choose another folder"
        )
    try:
        return written.num_patches == open_features(where[slide_id], slide_id).num_patches
    except DataError:
        return False
