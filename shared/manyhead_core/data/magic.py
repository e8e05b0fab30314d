"""Kinds of binary files, told by their first bytes."""

from __future__ import annotations

from pathlib import Path

# Kind: offset and the byte strings that may stand there.
KINDS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "brainvision": (0, (b"Brain Vision", b"BrainVision")),
    "dicom": (128, (b"DICM",)),
    "edf": (0, (b"0       ",)),
    "gzip": (0, (b"\x1f\x8b",)),
    "hdf5": (0, (b"\x89HDF\r\n\x1a\n",)),
    "jpeg": (0, (b"\xff\xd8\xff",)),
    # Version 7.3 is HDF5 behind a block of 512 bytes that starts like the older ones.
    "mat": (0, (b"MATLAB 5.0", b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n")),
    "npy": (0, (b"\x93NUMPY",)),
    "npz": (0, (b"PK\x03\x04",)),
    "parquet": (0, (b"PAR1",)),
    "png": (0, (b"\x89PNG\r\n\x1a\n",)),
    # Classic and big TIFF in both byte orders; SVS and NDPI are TIFF too.
    "tiff": (0, (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")),
    "xlsx": (0, (b"PK\x03\x04",)),
}


def is_kind(path: Path, kind: str) -> bool:
    """Whether the first bytes of a file are those of `kind`, one of `KINDS`."""
    offset, starts = KINDS[kind]
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(max(map(len, starts))).startswith(starts)


def kind_of(path: Path) -> str | None:
    """The kind of a file, or None when it is none of the known ones."""
    return next((kind for kind in KINDS if is_kind(path, kind)), None)
