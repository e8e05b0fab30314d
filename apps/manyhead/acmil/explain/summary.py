"""What is kept of an explained slide: numbers for the report, and the sign that it is complete."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead_core.errors import DataError
from manyhead_core.evaluate.files import read_json, replace, replace_json

FOLDER, SUMMARY, VECTORS = "slides", "summary.json", "vectors.npz"


@dataclass(frozen=True)
class Summary:
    """An explained slide.

    Args:
        slide_id: Its name.
        patches: Number of patches.
        patch_size_level0: Their side in level-0 pixels.
        prediction: Probability of each class, or the score, by name.
        evidence: By output: logit, constant, and sum over the patches.
        how: In words, how far the evidence can be trusted.
        concentration: Numbers of each attention map by name.
        pictures: Files in the folder of the slide by map.
        inside: Share of the attention inside the annotation and of the patches, or empty.
        notes: What a reader should know.
    """

    slide_id: str
    patches: int
    patch_size_level0: int
    prediction: dict[str, float]
    evidence: dict[str, dict[str, float]]
    how: str
    concentration: dict[str, dict[str, float]]
    pictures: dict[str, str] = field(default_factory=dict)
    inside: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def folder_of(out: Path, slide_id: str) -> Path:
    """Folder of the files of a slide."""
    return out / FOLDER / slide_id


def write_summary(folder: Path, summary: Summary) -> None:
    """Write it last: a slide that has one is complete."""
    replace_json(folder / SUMMARY, asdict(summary))


def read_summary(folder: Path) -> Summary:
    """The inverse of `write_summary`.

    Raises:
        DataError: It is damaged.
    """
    content: dict[str, Any] = read_json(folder / SUMMARY)
    try:
        return Summary(**content)
    except TypeError as err:
        raise DataError(
            f"{folder / SUMMARY}: is of another version; delete it and run again"
        ) from err


def write_vectors(
    folder: Path, slide: npt.NDArray[Any] | None, branches: npt.NDArray[Any] | None
) -> None:
    """Keep the pooled vectors for the picture of all slides."""
    kept = {"slide": slide, "branches": branches}
    arrays = {name: np.asarray(v, np.float32) for name, v in kept.items() if v is not None}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    replace(folder / VECTORS, write)


def read_vectors(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """`slide` `(dim,)` and `branches` `(branches, dim)`, as far as they were kept."""
    path = folder / VECTORS
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
