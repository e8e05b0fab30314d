"""Dictionaries from texts to ids: counted in a stream, stored as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

HASH_KEY = "manyhead-autoint"  # 16 bytes; another key would give every hashed value another id


def factorise(column: pd.Series[Any], missing: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the values and the distinct values as texts, in order of appearance.

    A number without a fraction is written without a point, so that 3, 3.0 and "3" are the same
    value in every file format.

    Args:
        column: Values of any type.
        missing: Texts that mean "no value", beside the empty one.

    Returns:
        Codes `(rows,)`, -1 for a missing value, and the texts they point to.
    """
    codes, values = pd.factorize(column)
    texts = _as_text(values)
    gone = np.isin(texts, np.array(["", *missing], dtype=object))
    if gone.any():
        codes = np.where(np.append(gone, False)[codes], -1, codes)
    return codes, texts


def hash_texts(texts: np.ndarray) -> np.ndarray:
    """Stable 64-bit hashes, uint64, one per text."""
    hashed = pd.util.hash_array(texts.astype(object), hash_key=HASH_KEY, categorize=False)
    return np.asarray(hashed, dtype=np.uint64)


class Counter:
    """Counts texts over chunks and keeps the order in which they were first seen."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, codes: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Count one chunk.

        Args:
            codes: Per row, position in `texts`; -1 is not counted.
            texts: Distinct texts of the chunk.

        Returns:
            Place of every text of the chunk among all texts.
        """
        # A plain dictionary costs the same for every chunk; an index would be built anew each time.
        known = self.places
        places = np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)
        if len(known) > len(self.counts):
            grown = np.zeros(max(2 * len(self.counts), len(known)), dtype=np.int64)
            grown[: len(self.counts)] = self.counts
            self.counts = grown
        self.counts[places] += np.bincount(codes[codes >= 0], minlength=len(texts))
        return places

    @property
    def texts(self) -> np.ndarray:
        """All texts in order of appearance."""
        return np.array(list(self.places), dtype=object)

    def frequent(self, min_count: int) -> np.ndarray:
        """Texts seen at least `min_count` times, in order of appearance."""
        return self.texts[self.counts[: len(self.places)] >= max(min_count, 1)]


class Vocabulary:
    """Texts with their ids.

    Args:
        texts: Distinct texts.
        ids: Their ids, int32.
        since: Row from which on each text has its id, int64; None: from the start.
    """

    def __init__(
        self, texts: Sequence[str] | np.ndarray, ids: np.ndarray, since: np.ndarray | None = None
    ) -> None:
        self.index = pd.Index(np.asarray(texts, dtype=object), dtype=object)
        self.ids = np.asarray(ids, dtype=np.int32)
        self.since = since

    def __len__(self) -> int:
        return len(self.index)

    def find(self, texts: np.ndarray) -> np.ndarray:
        """Positions of the texts in the dictionary, -1 for unknown ones."""
        return np.asarray(self.index.get_indexer(pd.Index(texts, dtype=object)))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Contents as tensors: utf-8 bytes, where each text ends, ids."""
        parts = [str(text).encode() for text in self.index]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        content = {
            f"{prefix}.bytes": torch.frombuffer(
                bytearray(b"".join(parts)) or bytearray(1), dtype=torch.uint8
            ),
            f"{prefix}.ends": torch.from_numpy(ends),
            f"{prefix}.ids": torch.from_numpy(self.ids.copy()),
        }
        if self.since is not None:
            content[f"{prefix}.since"] = torch.from_numpy(self.since.copy())
        return content

    @classmethod
    def from_tensors(cls, prefix: str, tensors: dict[str, Tensor]) -> Vocabulary:
        """The reverse of `tensors`."""
        data = tensors[f"{prefix}.bytes"].numpy().tobytes()
        ends = tensors[f"{prefix}.ends"].tolist()
        starts = [0, *ends[:-1]]
        texts = [data[start:end].decode() for start, end in zip(starts, ends, strict=False)]
        since = tensors.get(f"{prefix}.since")
        ids = tensors[f"{prefix}.ids"].numpy()
        return cls(texts, ids, None if since is None else since.numpy())


def _as_text(values: Any) -> np.ndarray:
    """Distinct values as an object array of texts."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.trunc(array)) & (np.abs(array) < 2**53)
        return np.array(
            [str(int(v)) if w else repr(float(v)) for v, w in zip(array, whole, strict=True)],
            dtype=object,
        )
    return np.array([value if type(value) is str else str(value) for value in array], dtype=object)
