"""The preprocessing of the published results, exactly: dictionary, thresholds, order of ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from manyhead.autoint.coders import CategoryCoder, Coder, ListCoder, NumberCoder
from manyhead.autoint.encoder import Encoder, EncoderOptions
from manyhead.autoint.fields import Field
from manyhead.autoint.sources import Source
from manyhead.autoint.sources.kdd12 import NOBODY, PROFILE, Kdd12Source
from manyhead.autoint.sources.movielens import AGES, DECADES, MovieLensSource
from manyhead.autoint.vocabulary import Counter, Vocabulary, factorise
from manyhead_core.errors import ConfigError

CRITEO_BOUND = 11  # "more than 10 times"
AVAZU_BOUND = 5
KDD12_BOUND = 10
MOVIELENS_1M_ROWS = 3600  # rows of the published embedding table
GENRE_SLOTS = 6


def fit_reference(source: Source) -> Encoder:
    """The encoder of the published results of a data set.

    It counts all rows, test rows among them: rare values of the test part leak into the
    dictionary. Use it to reproduce numbers, not to measure a model.

    Raises:
        ConfigError: The data set has no published preprocessing.
    """
    fitters: dict[str, Callable[..., Encoder]] = {
        "movielens-1m": fit_movielens,
        "movielens-100k": fit_movielens,
        "criteo": fit_criteo,
        "avazu": fit_avazu,
        "kdd12": fit_kdd12,
    }
    if source.format not in fitters:
        raise ConfigError(
            f"mode: the format {source.format} has no published preprocessing; use mode default"
        )
    return fitters[source.format](source)


class Crossings:
    """Finds, in a stream, the row at which each value of a field has been seen often enough.

    Args:
        field: The field.
        bound: Count at which a value gets its id.
        count_missing: Whether the empty text is a value.
    """

    def __init__(self, field: Field, bound: int, count_missing: bool = False) -> None:
        self.field = field
        self.bound = bound
        self.count_missing = count_missing
        self.counter = Counter()
        self._found: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, frame: pd.DataFrame) -> None:
        """Count one chunk; its index holds the row numbers."""
        codes, texts = factorise(frame[self.field.column])
        if self.count_missing:
            codes, texts = np.where(codes < 0, len(texts), codes), np.append(texts, "")
        known = self.counter.counts.copy()
        places = self.counter.add(codes, texts)
        prior = np.append(known, np.zeros(max(0, int(places.max(initial=-1)) + 1 - len(known))))
        rows = frame.index.to_numpy()[codes >= 0]
        place = places[codes[codes >= 0]]
        running = prior[place] + _occurrence(place) + 1
        crossed = running == self.bound
        self._found.append((rows[crossed], place[crossed]))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of crossing and the texts that crossed, in row order."""
        rows = np.concatenate([rows for rows, _ in self._found])
        places = np.concatenate([places for _, places in self._found])
        return rows, self.counter.texts[places]


def fit_criteo(source: Source) -> Encoder:
    """Per field, values seen more than 10 times get local ids 2, 3, ... in order of crossing.

    Id 0 is never used, the numbers own 1..13, and the empty text is counted as a value.
    """
    numbers, categories = _by_kind(source)
    crossings = [Crossings(f, CRITEO_BOUND, count_missing=True) for f in categories]
    _stream(source, crossings, categories)
    coders: list[Coder] = [NumberCoder(f, 1 + place) for place, f in enumerate(numbers)]
    vocabularies, offset = {}, len(numbers)
    for crossing in crossings:
        _, texts = crossing.result()
        ids = offset + 2 + np.arange(len(texts))
        vocabularies[crossing.field.name] = Vocabulary(texts, ids)
        coders.append(CategoryCoder(crossing.field, offset + 1, offset + 1, 1 + len(texts), True))
        offset += 1 + len(texts)
    return _encoder(source, coders, vocabularies, offset + 1)


def fit_avazu(source: Source) -> Encoder:
    """One pass: a value gets the next free id when its running count reaches 5."""
    fields = source.schema.fields
    others = {f.name: place for place, f in enumerate(fields)}
    crossings = [Crossings(f, AVAZU_BOUND) for f in fields]
    _stream(source, crossings, fields)
    vocabularies, total = _in_order(crossings, len(fields))
    coders = [
        CategoryCoder(f, others[f.name], others[f.name], 1 + len(vocabularies[f.name]))
        for f in fields
    ]
    return _encoder(source, coders, vocabularies, total)


def fit_kdd12(source: Kdd12Source) -> Encoder:
    """As Avazu with bound 10; gender and age own the ids before, in order of the profile file."""
    numbers, categories = _by_kind(source)
    counted = [f for f in categories if f.name not in PROFILE]
    others = {f.name: len(numbers) + place for place, f in enumerate(counted)}
    profile, start = _profile(source, len(numbers) + len(counted))
    crossings = [Crossings(f, KDD12_BOUND) for f in counted]
    _stream(source, crossings, counted)
    vocabularies, total = _in_order(crossings, start)
    vocabularies |= profile
    coders: list[Coder] = []
    for field in source.schema.fields:
        if field.kind == "number":
            coders.append(NumberCoder(field, [f.name for f in numbers].index(field.name)))
            continue
        values = len(vocabularies[field.name])
        unknown = others.get(field.name, 0)
        zero = (NOBODY,) if field.name == "user_id" else ()
        owned = values + (field.name in others)
        coders.append(CategoryCoder(field, unknown, unknown, owned, zero=zero))
    return _encoder(source, coders, vocabularies, total)


def fit_movielens(source: MovieLensSource) -> Encoder:
    """Ids from 1 in the order gender, age, occupation, zip, genres, pads, years, timestamp."""
    values = {
        "gender": ["M", "F"],
        "age": [str(age) for age in AGES],
        "occupation": _occupations(source),
        "zip": list(dict.fromkeys(source.users["zip"])),
        "genres": list(dict.fromkeys("|".join(source.movies["genres"]).split("|"))),
        "release_year": [*DECADES, *(str(year) for year in range(1970, 2001))],
    }
    values["genres"] = [genre for genre in values["genres"] if genre]
    vocabularies: dict[str, Vocabulary] = {}
    padding: tuple[int, ...] = ()
    total = 1
    for name, texts in values.items():
        vocabularies[name] = Vocabulary(texts, total + np.arange(len(texts)))
        total += len(texts)
        if name == "genres":
            padding = tuple(range(total, total + GENRE_SLOTS - 1))
            total += len(padding)
    coders: list[Coder] = []
    for field in source.schema.tokens:
        if field.kind == "list":
            owned = len(values["genres"]) + len(padding)
            coders.append(ListCoder(field, 0, padding, GENRE_SLOTS, owned))
        elif field.kind == "number":
            coders.append(_timestamp(source, field, total))
        else:
            coders.append(CategoryCoder(field, 0, 0, len(values[field.name])))
    table = MOVIELENS_1M_ROWS if source.format == "movielens-1m" else total + 1
    options = EncoderOptions(min_count=1)
    return Encoder(source.schema, coders, vocabularies, total, max(table, total + 1), options)


def _timestamp(source: Source, field: Field, number: int) -> NumberCoder:
    """Scaled by the range over all rows, as published: test rows take part."""
    times = np.concatenate(
        [frame[field.column].to_numpy(np.float64) for frame in source.chunks([field.column])]
    )
    return NumberCoder(field, number, float(times.min()), float(np.ptp(times)) or 1.0)


def _occupations(source: MovieLensSource) -> list[str]:
    """The 21 codes of MovieLens-1M, or the names of MovieLens-100K as they appear."""
    if source.format == "movielens-1m":
        return [str(code) for code in range(21)]
    return list(dict.fromkeys(source.users["occupation"]))


def _profile(source: Kdd12Source, start: int) -> tuple[dict[str, Vocabulary], int]:
    """Ids of genders and ages, as they come up line by line."""
    ids: dict[str, dict[str, int]] = {name: {} for name in PROFILE}
    pairs = source.profile[list(PROFILE)].drop_duplicates()
    for row in pairs.itertuples(index=False):
        for name, text in zip(PROFILE, row, strict=True):
            if text not in ids[name]:
                ids[name][text] = start
                start += 1
    found = {name: Vocabulary(list(own), np.array(list(own.values()))) for name, own in ids.items()}
    return found, start


def _in_order(crossings: Sequence[Crossings], start: int) -> tuple[dict[str, Vocabulary], int]:
    """Number all crossings of all fields by row, then by field."""
    found = [crossing.result() for crossing in crossings]
    rows = np.concatenate([rows for rows, _ in found])
    field = np.repeat(np.arange(len(found)), [len(rows) for rows, _ in found])
    ids = np.empty(len(rows), dtype=np.int64)
    ids[np.lexsort((field, rows))] = start + np.arange(len(rows))
    vocabularies = {
        crossing.field.name: Vocabulary(texts, ids[field == place], since.astype(np.int64))
        for place, (crossing, (since, texts)) in enumerate(zip(crossings, found, strict=True))
    }
    return vocabularies, start + len(rows)


def _stream(source: Source, crossings: Sequence[Crossings], fields: Sequence[Field]) -> None:
    for frame in source.chunks([f.column for f in fields]):
        for crossing in crossings:
            crossing.add(frame)


def _by_kind(source: Source) -> tuple[list[Field], list[Field]]:
    fields = source.schema.fields
    return [f for f in fields if f.kind == "number"], [f for f in fields if f.kind == "category"]


def _encoder(
    source: Source, coders: Sequence[Coder], vocabularies: dict[str, Vocabulary], total: int
) -> Encoder:
    options = EncoderOptions(min_count=1)
    return Encoder(source.schema, coders, vocabularies, total, options=options)


def _occurrence(place: np.ndarray) -> np.ndarray:
    """How many equal entries stand before each entry."""
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    count = np.empty(len(place), dtype=np.int64)
    count[order] = np.arange(len(place)) - starts
    return count
