"""Reading feature files: one patch a chunk, as other tools write, against converted ones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from benchmarks.harness import Outcome, Setting, Target, Variant, compare_work, find
from manyhead.acmil.layouts import open_features, slides_in
from manyhead.acmil.layouts.convert import convert
from manyhead_core.cli import console

LEGACY, CONVERTED, PACKED = "one-row chunks", "converted h5", "packed cache"
WHOLE, RANDOM = "full read", "512 random patches a slide"
PICKED = 512


def run(setting: Setting) -> Outcome:
    """Every slide of a folder, whole and some random patches of each."""
    slides, patches, width = setting.pick((50, 3000, 1024), (4, 600, 64))
    with tempfile.TemporaryDirectory() as folder:
        places = _write(Path(folder), slides, patches, width)
        shape = f"{slides} slides of {patches:,} x {width} float16"
        results = []
        for what, read in ((WHOLE, _whole), (RANDOM, _some)):
            group = f"{what}, {shape}"
            results += compare_work(
                group,
                [Variant(name, partial(_read_all, files, read)) for name, files in places.items()],
                setting,
                unit="slide",
            )
        targets = [
            Target(
                f"{WHOLE} of a {name} against {LEGACY}", 5,
                find(results, f"{WHOLE}, {shape}", name).ratio.median, "x",
            )
            for name in (CONVERTED, PACKED)
        ]  # fmt: skip
    notes = [
        "files lie in the page cache of the system: it is the work of reading that is timed, not "
        "the disk",
        "every read goes through open_features, checks that all values are finite, and gives an "
        "array of its own",
    ]
    return Outcome(results, targets, notes)


def _write(folder: Path, slides: int, patches: int, width: int) -> dict[str, Mapping[str, Path]]:
    """The same features three times."""
    (folder / "legacy").mkdir()
    generator = np.random.default_rng(0)
    for number in range(slides):
        values = generator.normal(size=(patches, width)).astype(np.float16)
        with h5py.File(folder / "legacy" / f"slide{number:03}.h5", "w") as file:
            file.create_dataset("features", data=values, chunks=(1, width))
            file.create_dataset("coords", data=np.zeros((patches, 2), np.int64), chunks=(1, 2))
    console.set_quiet(True)
    try:
        convert(folder / "legacy", folder / "converted")
        convert(folder / "legacy", folder / "packed", to="packed")
    finally:
        console.set_quiet(False)
    names = {LEGACY: "legacy", CONVERTED: "converted", PACKED: "packed"}
    return {name: slides_in(folder / place) for name, place in names.items()}


def _read_all(files: Mapping[str, Path], read: Callable[[str, Path], int]) -> int:
    """Number of slides; all are read."""
    for name, path in files.items():
        if not read(name, path):
            raise AssertionError(f"nothing read of {name}")
    return len(files)


def _whole(name: str, path: Path) -> int:
    return open_features(path, name).features().size


def _some(name: str, path: Path) -> int:
    file = open_features(path, name)
    generator = np.random.default_rng(file.num_patches)
    count = min(PICKED, file.num_patches)
    rows = np.sort(generator.choice(file.num_patches, count, replace=False))
    return file.features(rows).size
