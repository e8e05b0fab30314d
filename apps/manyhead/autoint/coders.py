"""How one field is encoded: a number, a category, a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.vocabulary import Vocabulary, factorise, hash_texts
from manyhead_core.errors import DataError


@dataclass(frozen=True)
class NumberCoder:
    """A number: one id, the value `(transform(x) - shift) / scale`."""

    field: Field
    id: int
    shift: float = 0.0
    scale: float = 1.0
    owned: int = 1

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name

    def encode(self, frame: pd.DataFrame) -> tuple[np.ndarray, int]:
        """Values float64 `(rows,)`, 0 where missing, and how many were infinite."""
        numbers = to_numbers(frame[self.field.column], self.field)
        infinite = np.isinf(numbers)
        numbers[infinite] = np.nan
        scaled = (transform(numbers, self.field.transform) - self.shift) / self.scale
        # float32 ends at 3.4e38; a number beyond would become infinite there.
        return np.clip(np.nan_to_num(scaled, nan=0.0), -3e38, 3e38), int(infinite.sum())

    def meta(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"field": self.name, "id": self.id, "shift": self.shift, "scale": self.scale}


@dataclass(frozen=True)
class CategoryCoder:
    """A category: the id of its value, the unknown id, or value 0 when it is missing.

    Args:
        field: The field.
        unknown: Id of values without one; first id of the buckets when the field is hashed.
        missing: Id that a missing value keeps.
        owned: Rows of the table that belong to the field.
        counted_missing: The empty text is in the dictionary, and its id counts when missing.
        zero: Texts that keep their id but have value 0.
    """

    field: Field
    unknown: int
    missing: int
    owned: int
    counted_missing: bool = False
    zero: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name

    def encode(
        self, frame: pd.DataFrame, vocabulary: Vocabulary | None, rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 and values float32, both `(rows,)`."""
        codes, texts = factorise(frame[self.field.column], self.field.missing)
        ids = lookup(texts, vocabulary, self.field, self.unknown)
        index = np.append(ids, self._id_of_missing(vocabulary)).astype(np.int32)[codes]
        if rows is not None and vocabulary is not None and vocabulary.since is not None:
            places = vocabulary.find(np.append(texts, ""))
            # The last row number never comes: a value without an entry is never introduced.
            since = np.append(vocabulary.since, np.iinfo(np.int64).max)[places][codes]
            index = np.where(rows >= since, index, np.int32(self.unknown))
        present = np.append(~np.isin(texts, np.array(self.zero, dtype=object)), False)
        return index, present[codes].astype(np.float32)

    def unseen(self, frame: pd.DataFrame, vocabulary: Vocabulary) -> float:
        """Share of the present values that are not in the dictionary."""
        codes, texts = factorise(frame[self.field.column], self.field.missing)
        return _unseen_share(codes[codes >= 0], texts, vocabulary)

    def meta(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {"field": self.name, "unknown": self.unknown, "missing": self.missing}
        return values | {
            "owned": self.owned,
            "counted_missing": self.counted_missing,
            "zero": list(self.zero),
        }

    def _id_of_missing(self, vocabulary: Vocabulary | None) -> int:
        if not self.counted_missing or vocabulary is None:
            return self.missing
        place = vocabulary.find(np.array([""], dtype=object))[0]
        return int(vocabulary.ids[place]) if place >= 0 else self.missing


@dataclass(frozen=True)
class ListCoder:
    """A list: ids and weights in a fixed number of slots; a longer list loses its end.

    Args:
        field: The field.
        unknown: Id of values without one; first id of the buckets when the field is hashed.
        padding: Ids of unused slots, which have weight 0: the first unused slot has the first.
        slots: Values kept per row.
        owned: Rows of the table that belong to the field.
    """

    field: Field
    unknown: int
    padding: tuple[int, ...]
    slots: int
    owned: int

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name

    def encode(
        self, frame: pd.DataFrame, vocabulary: Vocabulary | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 and weights float32, both `(rows, slots)`."""
        entries = Lists.read(frame[self.field.column], self.field)
        own = lookup(entries.texts, vocabulary, self.field, self.unknown)
        kept = entries.slot < self.slots
        row, slot = entries.row[kept], entries.slot[kept]
        index = np.full((entries.count, self.slots), self.padding[0], dtype=np.int32)
        weight = np.zeros((entries.count, self.slots), dtype=np.float32)
        index[row, slot] = own[entries.code[kept]]
        weight[row, slot] = 1
        if len(set(self.padding)) > 1:
            index = self._pad(index, weight)
        index, weight = index[entries.which], weight[entries.which]
        if self.field.weights:
            weight = self._weights(frame, weight)
        return index, weight

    def unseen(self, frame: pd.DataFrame, vocabulary: Vocabulary) -> float:
        """Share of the present values that are not in the dictionary."""
        entries = Lists.read(frame[self.field.column], self.field)
        return _unseen_share(entries.codes_of_rows(), entries.texts, vocabulary)

    def meta(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {"field": self.name, "unknown": self.unknown, "padding": list(self.padding)}
        return values | {"slots": self.slots, "owned": self.owned}

    def _pad(self, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Unused slots get the padding ids in turn, from the first unused slot on."""
        lengths = (weight > 0).sum(1, keepdims=True)
        nth = np.arange(self.slots)[None, :] - lengths
        padding = np.array(self.padding, dtype=np.int32)
        return np.where(nth < 0, index, padding[np.clip(nth, 0, len(padding) - 1)])

    def _weights(self, frame: pd.DataFrame, present: np.ndarray) -> np.ndarray:
        column = self.field.weights
        entries = Lists.read(frame[column], self.field)
        numbers = pd.to_numeric(pd.Series(entries.texts), errors="coerce").to_numpy(np.float64)
        if not (np.isfinite(numbers) & (numbers >= 0)).all():
            raise DataError(f"column {column}: weights must be numbers of 0 or more")
        weight = np.zeros((entries.count, self.slots), dtype=np.float32)
        kept = entries.slot < self.slots
        weight[entries.row[kept], entries.slot[kept]] = numbers[entries.code[kept]]
        lengths = np.bincount(entries.row[kept], minlength=entries.count)[entries.which]
        wrong = np.flatnonzero(lengths != (present > 0).sum(1))
        if len(wrong):
            raise DataError(
                f"column {column}, row {frame.index[wrong[0]]}: has {lengths[wrong[0]]} "
                f"weights for {int((present[wrong[0]] > 0).sum())} values of {self.field.column}"
            )
        return np.asarray(weight[entries.which])


Coder = NumberCoder | CategoryCoder | ListCoder


@dataclass(frozen=True)
class Lists:
    """The entries of a list column, each distinct text list once.

    Args:
        count: Distinct lists.
        which: Per row of the column, its list.
        row: Per entry, its list.
        slot: Per entry, its place in the list.
        code: Per entry, its text.
        texts: Distinct texts.
    """

    count: int
    which: np.ndarray
    row: np.ndarray
    slot: np.ndarray
    code: np.ndarray
    texts: np.ndarray

    @classmethod
    def read(cls, column: pd.Series[Any], field: Field) -> Lists:
        """Split delimited texts, or take lists and arrays as they are."""
        first = column.dropna().head(1).to_list() if column.dtype == object else []
        if first and isinstance(first[0], list | tuple | np.ndarray):
            parts = [() if _is_gap(entry) else entry for entry in column]
            which = np.arange(len(column))
        else:
            codes, texts = factorise(column, field.missing)
            parts = [[p for p in text.split(field.separator) if p] for text in texts]
            parts.append([])
            which = np.where(codes < 0, len(parts) - 1, codes)
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        flat = pd.Series([entry for part in parts for entry in part], dtype=object)
        code, texts = factorise(flat, field.missing)
        row = np.repeat(np.arange(len(parts)), lengths)
        return cls._of(len(parts), which, row[code >= 0], code[code >= 0], texts)

    @classmethod
    def _of(
        cls, count: int, which: np.ndarray, row: np.ndarray, code: np.ndarray, texts: np.ndarray
    ) -> Lists:
        starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
        return cls(count, which, row, np.arange(len(row)) - starts[row], code, texts)

    @property
    def longest(self) -> int:
        """Entries of the longest list."""
        return int(self.slot.max()) + 1 if len(self.slot) else 0

    def codes_of_rows(self) -> np.ndarray:
        """Codes of all entries of all rows, repeated lists included."""
        times = np.bincount(self.which, minlength=self.count)
        return np.repeat(self.code, times[self.row])


def lookup(
    texts: np.ndarray, vocabulary: Vocabulary | None, field: Field, unknown: int
) -> np.ndarray:
    """Ids of texts, int64; a hashed field has no vocabulary, its buckets start at `unknown`."""
    if vocabulary is None:
        buckets = hash_texts(texts) % np.uint64(field.num_buckets)
        return unknown + np.asarray(buckets, dtype=np.int64)
    ids = np.append(vocabulary.ids, unknown)[vocabulary.find(texts)]
    return np.asarray(ids, dtype=np.int64)


def to_numbers(column: pd.Series[Any], field: Field) -> np.ndarray:
    """A column as float64, NaN where missing.

    Raises:
        DataError: A value is no number; names its row.
    """
    if column.dtype.kind in "biuf":
        return column.to_numpy(np.float64, copy=True, na_value=np.nan)
    known_gap = column.isna() | column.astype(str).isin(["", *field.missing])
    numbers = pd.to_numeric(column.mask(known_gap), errors="coerce")
    wrong = numbers.isna() & ~known_gap
    if wrong.any():
        place = int(wrong.to_numpy().argmax())
        raise DataError(
            f"column {field.column}, row {column.index[place]}: {column.iloc[place]!r} is no "
            "number; mend the value, list it under missing, or declare the field a category"
        )
    return np.array(numbers, dtype=np.float64)


def transform(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Apply the transform of a number field; NaN stays."""
    if kind == "log1p":
        return np.asarray(np.sign(numbers) * np.log1p(np.abs(numbers)))
    if kind == "log_square":
        large = numbers > 2
        return np.where(large, np.floor(np.log(np.where(large, numbers, 1.0)) ** 2), numbers)
    return numbers


def coder_from_meta(meta: Mapping[str, Any], schema: Schema) -> Coder:
    """The coder that `meta()` describes."""
    values = dict(meta)
    by_name = {f.name: f for f in schema.fields}
    field = by_name[values.pop("field")]
    if field.kind == "number":
        return NumberCoder(field, **values)
    if field.kind == "list":
        return ListCoder(field, **values | {"padding": tuple(values["padding"])})
    return CategoryCoder(field, **values | {"zero": tuple(values["zero"])})


def _unseen_share(codes: np.ndarray, texts: np.ndarray, vocabulary: Vocabulary) -> float:
    unknown = vocabulary.find(texts) < 0
    return float(unknown[codes].mean()) if len(codes) else float("nan")


def _is_gap(entry: Any) -> bool:
    return entry is None or (isinstance(entry, float) and np.isnan(entry))
