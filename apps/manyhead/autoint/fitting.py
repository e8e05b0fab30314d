"""Fit an encoder on a stream of training rows: counts of values, spread of numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from manyhead.autoint.coders import (
    CategoryCoder,
    Coder,
    ListCoder,
    Lists,
    NumberCoder,
    to_numbers,
    transform,
)
from manyhead.autoint.encoder import Encoder, EncoderOptions
from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.vocabulary import Counter, Vocabulary, factorise
from manyhead_core.errors import DataError


class Spread:
    """Mean, variance and range of a number over chunks (Chan et al. 1979 for the variance)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, numbers: np.ndarray) -> None:
        """Take in one chunk; NaN and infinite values are left out."""
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return
        mean, total = float(numbers.mean()), self.count + len(numbers)
        gap = mean - self.mean
        self.squares += float(((numbers - mean) ** 2).sum())
        self.squares += gap**2 * self.count * len(numbers) / total
        self.mean += gap * len(numbers) / total
        self.count = total
        self.low, self.high = min(self.low, numbers.min()), max(self.high, numbers.max())

    def shift_and_scale(self, scaling: str) -> tuple[float, float]:
        """Values for `(x - shift) / scale`; a constant column keeps scale 1."""
        if scaling == "none" or not self.count:
            return 0.0, 1.0
        if scaling == "minmax":
            return float(self.low), float(self.high - self.low) or 1.0
        return self.mean, float(np.sqrt(self.squares / self.count)) or 1.0


def fit(frames: Iterable[pd.DataFrame], schema: Schema, options: EncoderOptions) -> Encoder:
    """Count the stream once, then give out the ids field by field, in token order.

    Raises:
        DataError: There is no row.
    """
    tallies = {f.name: Spread() if f.kind == "number" else Counter() for f in schema.tokens}
    longest = dict.fromkeys(tallies, 0)
    rows = 0
    for frame in frames:
        rows += len(frame)
        for field in schema.tokens:
            longest[field.name] = max(longest[field.name], _count(frame, field, tallies))
    if not rows:
        raise DataError("encoder: there is no training row to fit on")
    return _number(schema, options, tallies, longest)


def _count(frame: pd.DataFrame, field: Field, tallies: dict[str, Spread | Counter]) -> int:
    """Add a chunk to the tally of a field; returns the longest list."""
    tally = tallies[field.shares or field.name]
    column = frame[field.column]
    if isinstance(tally, Spread):
        numbers = to_numbers(column, field)
        tally.add(transform(np.where(np.isinf(numbers), np.nan, numbers), field.transform))
        return 0
    if field.num_buckets:
        return Lists.read(column, field).longest if field.kind == "list" else 0
    if field.kind == "category":
        tally.add(*factorise(column, field.missing))
        return 0
    lists = Lists.read(column, field)
    tally.add(lists.codes_of_rows(), lists.texts)
    return lists.longest


def _number(
    schema: Schema,
    options: EncoderOptions,
    tallies: dict[str, Spread | Counter],
    longest: dict[str, int],
) -> Encoder:
    """Every owner gets a block of ids: the unknown id first, then its values."""
    vocabularies: dict[str, Vocabulary] = {}
    starts: dict[str, int] = {}
    owned: dict[str, int] = {}
    total = 0
    for field in schema.tokens:
        if field.shares:
            continue
        starts[field.name], owned[field.name] = total, 1
        tally = tallies[field.name]
        if field.num_buckets:
            owned[field.name] = field.num_buckets
        elif isinstance(tally, Counter):
            texts = tally.frequent(field.min_count or options.min_count)
            vocabularies[field.name] = Vocabulary(texts, total + 1 + np.arange(len(texts)))
            owned[field.name] = 1 + len(texts)
        total += owned[field.name]
    coders = [
        _coder(field, starts, owned, tallies[field.name], longest[field.name], options)
        for field in schema.tokens
    ]
    return Encoder(schema, coders, vocabularies, total, options=options)


def _coder(
    field: Field,
    starts: dict[str, int],
    owned: dict[str, int],
    tally: Spread | Counter,
    longest: int,
    options: EncoderOptions,
) -> Coder:
    start = starts[field.shares or field.name]
    if isinstance(tally, Spread):
        return NumberCoder(field, start, *tally.shift_and_scale(field.scaling))
    mine = 0 if field.shares else owned[field.name]
    if field.kind == "category":
        return CategoryCoder(field, start, start, mine)
    slots = field.max_slots or max(1, min(longest, options.max_slots))
    return ListCoder(field, start, (start,), slots, mine)
