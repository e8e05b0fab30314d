from __future__ import annotations

import numpy as np
import pytest

from manyhead.autoint.encoder import Encoder
from manyhead.autoint.encoding import encode, fit_encoder
from manyhead.autoint.sources import open_source
from manyhead.autoint.splitting import SplitOptions, assign, fold_numbers

SIZES = (
    30, 133, 52, 81, 16, 8, 145, 24, 3, 87, 205, 60, 211, 14, 197, 77, 10, 174, 32, 5, 69, 7, 13,
    90, 25, 60,
)  # fmt: skip
FIRST = (
    16, 48, 177, 229, 311, 327, 334, 482, 504, 506, 593, 798, 858, 1072, 1217, 1280, 1358, 1371,
    1543, 1577, 1578, 1648, 1656, 1667, 1759, 1782,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(data_dir):
    return open_source("criteo", data_dir / "recsys" / "criteo", None, "reference")


@pytest.fixture(scope="module")
def encoded(source):
    encoder = fit_encoder(source, np.zeros(0, dtype=np.int8), "reference")
    return encoder, *next(encode(source, encoder, "reference"))


def test_the_published_dictionary(encoded):
    encoder, _, _ = encoded
    assert encoder.num_features == 1842
    assert tuple(encoder.feature_counts.values()) == (1,) * 13 + SIZES


def test_the_first_row(encoded):
    _, _, rows = encoded
    assert rows.index[0].tolist() == [*range(1, 14), *FIRST]
    numbers = [1, 1, 2, 0, 52, 1, 7, 2, 27, 1, 2, 0, 2]
    present = [1.0] * 26
    present[21] = 0.0
    assert rows.value[0].tolist() == numbers + present


def test_the_published_split(source, encoded):
    _, frame, _ = encoded
    label = frame["label"].to_numpy()
    assert label.sum() == 2182
    number = fold_numbers(label, 10, 2018)
    assert np.bincount(number).tolist() == [1000] * 10
    assert np.bincount(number, label).tolist() == [218] * 8 + [219] * 2
    part = assign(source, SplitOptions(by="reference"))
    assert np.flatnonzero(part == 2)[:8].tolist() == [18, 26, 41, 52, 77, 80, 85, 86]
    assert np.bincount(part).tolist() == [8000, 1000, 1000]


@pytest.mark.parametrize("chunk_rows", [700, 10000])
def test_the_encoding_does_not_depend_on_the_chunks(data_dir, encoded, chunk_rows):
    encoder, _, rows = encoded
    source = open_source("criteo", data_dir / "recsys" / "criteo", None, "reference")
    source.chunk_rows = chunk_rows
    again = fit_encoder(source, np.zeros(0, dtype=np.int8), "reference")
    index = np.concatenate([part.index for _, part in encode(source, again, "reference")])
    assert (index == rows.index).all()
    restored = Encoder.from_state(*encoder.state())
    assert (restored.transform(next(source.chunks())).index == index[:chunk_rows]).all()
