"""Find out which layout a file has, and which files a folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from manyhead.acmil.layouts.arrays import ArrayFeatures
from manyhead.acmil.layouts.feature_file import FeatureFile
from manyhead.acmil.layouts.hdf5 import groups_in, open_hdf5
from manyhead.acmil.layouts.packed import INDEX, PackedFeatures, packed_slides
from manyhead_core.errors import DataError

HDF5, ARRAYS = (".h5", ".hdf5"), (".pt", ".npy")
# Folders in which CLAM keeps the same features twice; the first that exists is taken.
CLAM_FOLDERS = ("h5_files", "pt_files")


def open_features(path: Path, slide_id: str | None = None, mpp: float | None = None) -> FeatureFile:
    """Open the features of a slide; the layout is found from the names in the file.

    Args:
        path: HDF5, .pt or .npy file, or the index of a packed cache.
        slide_id: Slide, for a file of many slides; else the name of the file is taken.
        mpp: µm per level-0 pixel of the slide, for files with coordinates in µm.

    Raises:
        DataError: The file is missing, damaged, or holds no features.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"features: no file {path}")
    if path.name == INDEX:
        return PackedFeatures(path, slide_id, mpp)
    if path.suffix in ARRAYS:
        return ArrayFeatures(path, slide_id or path.stem)
    if path.suffix not in HDF5:
        raise DataError(f"features: {path.name} is none of {', '.join((*HDF5, *ARRAYS))}")
    return open_hdf5(path, slide_id, mpp)


def slides_in(root: Path) -> dict[str, Path]:
    """Files by slide below a folder, or in one file of many slides.

    Args:
        root: Folder, file, or packed cache.

    Raises:
        DataError: There are none, or two files for one slide.
    """
    root = Path(root)
    if root.name == INDEX or (root / INDEX).is_file():
        index = root if root.name == INDEX else root / INDEX
        return dict.fromkeys(packed_slides(index), index)
    if root.is_file():
        names = groups_in(root) if root.suffix in HDF5 else []
        return dict.fromkeys(names or [root.stem], root)
    if not root.is_dir():
        raise DataError(f"features: no folder {root}")
    found: dict[str, Path] = {}
    for path in _files(root):
        for name in _slides_of(path):
            if name in found:
                raise DataError(
                    f"features: {name} is in {found[name].relative_to(root)} and in "
                    f"{path.relative_to(root)}; name the folder that is meant"
                )
            found[name] = path
    if not found:
        raise DataError(f"features: {root} holds no {', '.join((*HDF5, *ARRAYS))} file")
    return found


def _slides_of(path: Path) -> list[str]:
    """Slides of one file of a folder; a damaged one fails alone, when it is opened."""
    try:
        return (groups_in(path) if path.suffix in HDF5 else []) or [path.stem]
    except DataError:
        return [path.stem]


def _files(root: Path) -> Iterator[Path]:
    for name in CLAM_FOLDERS:
        if (root / name).is_dir():
            root = root / name
            break
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix in (*HDF5, *ARRAYS) and path.is_file() and not hidden:
            yield path
