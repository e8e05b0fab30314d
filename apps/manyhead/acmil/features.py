"""`features`: encode the patches of slides, one feature file a slide. Any encoder, no downloads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import torch

from manyhead.acmil.batch import Batch, Outcome
from manyhead.acmil.coordinates import Patches
from manyhead.acmil.coordinates_file import CoordinatesFile, read_coordinates, slide_id_of
from manyhead.acmil.encoders import Encoder, TransformOptions, open_encoder
from manyhead.acmil.encoders.transform import Interpolation, Normalisation, Triple
from manyhead.acmil.layouts.write import Dtype, FeatureWriter
from manyhead.acmil.slide_list import SlideEntry, list_slides
from manyhead.acmil.slides import open_slide
from manyhead.acmil.slides.opening import Reader
from manyhead.acmil.tiles import Damage, TileReader
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.hub.network import check_device

Precision = Literal["float32", "bf16"]
HDF5 = (".h5", ".hdf5")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How features are computed and kept.

    Args:
        batch_size: Patches that the encoder sees at a time.
        workers: Threads that read the slide.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: `float32`, or `bf16` for the matrix products on CUDA.
        dtype: How features are stored. Half precision halves the files and the reading; its
            relative error of 0.0005 is below that of encoders that run in bf16.
        skip_damaged: Leave out patches that cannot be read instead of failing the slide.
        reader: What reads the slides.
    """

    batch_size: int = 256
    workers: int = 4
    device: str = "auto"
    precision: Precision = "float32"
    dtype: Dtype = "float16"
    skip_damaged: bool = False
    reader: Reader = "auto"

    def __post_init__(self) -> None:
        """Check sizes and names."""
        for name, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")
        if self.precision == "bf16" and self.torch_device.type != "cuda":
            raise ConfigError(
                f"precision: bf16 is for CUDA, the device is {self.torch_device}; use float32"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device that is meant."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return check_device(self.device, "auto, cpu or cuda")


def features(
    coords: Path,
    out: Path,
    /,
    slides: Path,
    encoder: str = "handcrafted32",
    builder: str | None = None,
    resize: int | None = 224,
    crop: int | None = None,
    normalise: Normalisation = "imagenet",
    mean: Triple | None = None,
    std: Triple | None = None,
    interpolation: Interpolation = "bilinear",
    batch_size: int = 256,
    workers: int = 4,
    device: str = "auto",
    precision: Precision = "float32",
    dtype: Dtype = "float16",
    skip_damaged: bool = False,
    reader: Reader = "auto",
    strict: bool = False,
) -> int:
    """Encode the patches of slides into one HDF5 file a slide. Nothing is downloaded.

    Slides whose file is complete are skipped, so a stopped run goes on where it was. A slide that
    fails is listed in report.csv and the others go on.

    Args:
        coords: Folder of coordinate files as `tile` writes them (or CLAM or TRIDENT), or one file.
        out: Folder for the features; may hold those of an earlier start.
        slides: Folder of slides, one slide, or CSV file with the columns slide_id, path and mpp.
        encoder: `handcrafted32`; `package.module:callable` that returns a torch module, or a
            module and its transform; or a local weight file. A TorchScript file runs the
            serialised TorchScript it holds, other files are read as weights only.
        builder: `package.module:callable` that returns the network for a file of weights only.
        resize: Shorter side in pixels that patches are resized to; null leaves them.
        crop: Side of a square cut from the middle afterwards.
        normalise: Mean and standard deviation of `imagenet`, `clip`, `lunit`, or `none`.
        mean: Mean of R, G, B instead, 0 to 1, as [0.5,0.5,0.5].
        std: Standard deviation of R, G, B instead.
        interpolation: `bilinear` or `bicubic`.
        batch_size: Patches that the encoder sees at a time.
        workers: Threads that read the slide.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: `float32`, or `bf16` on CUDA.
        dtype: `float16` or `float32`, how features are stored.
        skip_damaged: Leave out patches that cannot be read instead of failing their slide.
        reader: `auto`, `openslide`, `tiffslide` or `image`.
        strict: Fail when one slide did.
    """
    options = FeatureOptions(
        batch_size=batch_size, workers=workers, device=device, precision=precision, dtype=dtype,
        skip_damaged=skip_damaged, reader=reader,
    )  # fmt: skip
    transform = TransformOptions(
        resize=resize, crop=crop, normalise=normalise, mean=mean, std=std,
        interpolation=interpolation,
    )  # fmt: skip
    files = coordinate_files(coords)
    entries = list_slides(slides)
    opened = open_encoder(encoder, builder, transform, _tile_size(files))
    opened.module.to(options.torch_device)
    console.say(f"{opened.name}: {opened.feature_dim} numbers a patch, on {options.torch_device}")
    work = partial(_work, out=out, entries=entries, encoder=opened, options=options)
    done = partial(is_complete, out, files, opened, dtype)
    return Batch(work, out, "encoding slides", done).run(files, strict=strict)


def coordinate_files(source: Path) -> dict[str, Path]:
    """Coordinate files by slide id.

    Raises:
        DataError: There are none, or two for one slide.
    """
    if source.is_file():
        return {slide_id_of(source): source}
    if not source.is_dir():
        raise DataError(f"coords: {source} does not exist; run tile first")
    found: dict[str, Path] = {}
    for path in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if path.suffix.lower() not in HDF5 or hidden:
            continue
        name = slide_id_of(path)
        if name in found:
            raise DataError(
                f"coords: {found[name].relative_to(source)} and {path.relative_to(source)} are of "
                "one slide; name the folder that is meant"
            )
        found[name] = path
    if not found:
        raise DataError(f"coords: {source} holds no {' or '.join(HDF5)} file; run tile first")
    return found


def is_complete(
    out: Path, files: dict[str, Path], encoder: Encoder, dtype: Dtype, slide_id: str
) -> bool:
    """Whether an earlier start has written the features of a slide.

    Raises:
        ConfigError: They are of another encoder or precision, or no features.
    """
    path = out / f"{slide_id}.h5"
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r") as file:
            about, count = dict(file.attrs), file.attrs.get("num_coords", -1)
            about["dtype"] = file["features"].dtype.name if "features" in file else None
    except OSError:
        return False
    for name, value in {**encoder.described(), "dtype": dtype}.items():
        if about.get(name) != value:
            raise ConfigError(
                f"out: {path} was made with {name} {about.get(name) or 'unknown'}, not "
                f"{value or 'none'}; choose another folder"
            )
    try:
        return int(count) == len(read_coordinates(files[slide_id]).coords)
    except DataError:
        return False


def encode_slide(
    entry: SlideEntry,
    places: CoordinatesFile,
    path: Path,
    encoder: Encoder,
    options: FeatureOptions,
) -> tuple[int, Damage]:
    """Write the features of a slide.

    Args:
        entry: The slide.
        places: Its patches.
        path: File ending in .h5; appears when it is complete.
        encoder: What encodes them; its module lies on the device.
        options: How.

    Returns:
        Number of patches, and what could not be read.

    Raises:
        DataError: The slide cannot be read, or patches cannot and `skip_damaged` is off.
    """
    opening = partial(open_slide, entry.path, options.reader, entry.mpp or places.mpp)
    with opening() as slide:
        patches = places.patches(slide)
    about = _attributes(places.slide_id, patches, encoder)
    with (
        TileReader(opening, patches, options.workers) as reader,
        FeatureWriter(path, len(patches.coords), encoder.feature_dim, options.dtype, about) as file,
    ):
        for tiles, corners in reader.batches(options.batch_size):
            if len(reader.damage.lost) and not options.skip_damaged:
                raise DataError(_lost(places.slide_id, reader.damage))
            if len(tiles):
                found = encoder.encode(
                    torch.from_numpy(tiles), options.torch_device, _reduced(options)
                )
                file.append(found.numpy(), corners)
        if not options.skip_damaged and reader.damage.lost:
            raise DataError(_lost(places.slide_id, reader.damage))
        file.note("lost_patches", len(reader.damage.lost))
        file.note("retried_patches", reader.damage.retried)
    return file.rows, reader.damage


def _work(
    path: Path,
    out: Path,
    entries: dict[str, SlideEntry],
    encoder: Encoder,
    options: FeatureOptions,
) -> Outcome:
    places = read_coordinates(path)
    entry = entries.get(places.slide_id)
    if entry is None:
        raise DataError(f"{places.slide_id}: no such slide among the {len(entries)} of --slides")
    count, damage = encode_slide(entry, places, out / f"{places.slide_id}.h5", encoder, options)
    remarks = []
    if damage.retried:
        remarks.append(f"{damage.retried} patches read from a coarser level")
    if damage.lost:
        remarks.append(f"{len(damage.lost)} patches cannot be read and are left out")
    return Outcome("ok" if count else "no tissue", count, error="; ".join(remarks))


def _attributes(slide_id: str, patches: Patches, encoder: Encoder) -> dict[str, Any]:
    return {
        "slide_id": slide_id,
        "patch_size_level0": patches.size_level0,
        "patch_level": patches.level,
        "patch_size": patches.patch_size,
        "read_size": patches.read_size,
        "mpp": patches.mpp,
        "num_coords": len(patches.coords),
        **encoder.described(),
    }


def _lost(slide_id: str, damage: Damage) -> str:
    return (
        f"{slide_id}: the slide is damaged at {damage.lost[0]}; pass --skip_damaged true to leave "
        "out the patches that cannot be read"
    )


def _reduced(options: FeatureOptions) -> torch.dtype | None:
    return torch.bfloat16 if options.precision == "bf16" else None


def _tile_size(files: dict[str, Path]) -> int:
    """Side of the patches of the first readable file, to try the encoder on."""
    for path in files.values():
        try:
            return read_coordinates(path).patch_size
        except DataError:
            continue
    raise DataError(f"coords: none of the {len(files)} files can be read")
