"""From a source to encoded rows: fit the encoder, then encode in file order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from manyhead.autoint.encoder import Encoded, Encoder, EncoderOptions
from manyhead.autoint.reference import fit_reference
from manyhead.autoint.sources import Mode, Source
from manyhead.autoint.vocabulary import factorise, hash_texts
from manyhead_core.errors import DataError

TRAIN = 0


def fit_encoder(
    source: Source,
    split: np.ndarray,
    mode: Mode = "default",
    options: EncoderOptions | None = None,
) -> Encoder:
    """Fit the dictionary and the scaling of numbers.

    Args:
        source: Raw rows.
        split: Part of every row, int8 `(rows,)`; the default encoder sees part 0 only.
        mode: `reference` repeats the published preprocessing, which counts all rows.
        options: Of the default encoder.

    Raises:
        DataError: `split` is not as long as the source, or has no training row.
    """
    if mode == "reference":
        return fit_reference(source)
    return Encoder.fit(_training_rows(source, split), source.schema, options)


def encode(
    source: Source, encoder: Encoder, mode: Mode = "default"
) -> Iterator[tuple[pd.DataFrame, Encoded]]:
    """Raw rows with their encoding, chunk by chunk in file order.

    Args:
        source: Raw rows.
        encoder: A fitted encoder.
        mode: `reference` gives a row only the values that had an id when the row was reached.
    """
    for frame in source.chunks():
        streaming = mode == "reference"
        yield frame, encoder.transform(frame, streaming=streaming)


def group_ids(frame: pd.DataFrame, column: str | None) -> np.ndarray:
    """Stable ids of the groups, int64 `(rows,)`, -1 where there is none.

    The same text has the same id in every process, file and version.
    """
    if column is None or column not in frame:
        return np.full(len(frame), -1, dtype=np.int64)
    codes, texts = factorise(frame[column])
    hashed = (hash_texts(texts) >> np.uint64(1)).astype(np.int64)
    return np.asarray(np.append(hashed, -1)[codes], dtype=np.int64)


def _training_rows(source: Source, split: np.ndarray) -> Iterator[pd.DataFrame]:
    done, used = 0, 0
    for frame in source.chunks():
        part = split[done : done + len(frame)]
        if len(part) < len(frame):
            break
        done += len(frame)
        chosen = frame[part == TRAIN]
        used += len(chosen)
        yield chosen
    if done != len(split) or used == 0:
        state = "no row in part 0 (train)" if done == len(split) else f"{len(split)} rows"
        raise DataError(f"split: has {state}, the data another number; make the split anew")
