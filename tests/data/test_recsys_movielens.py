from __future__ import annotations

import numpy as np
import pytest

from manyhead.autoint.encoding import encode, fit_encoder
from manyhead.autoint.sources import open_source
from manyhead.autoint.splitting import Keys, SplitOptions, assign, by_shuffle

REFERENCE = SplitOptions(by="reference")


@pytest.fixture(scope="module")
def source(data_dir):
    return open_source("movielens-1m", data_dir / "recsys" / "ml-1m", None, "reference")


@pytest.fixture(scope="module")
def encoded(source):
    encoder = fit_encoder(source, np.zeros(0, dtype=np.int8), "reference")
    return encoder, next(encode(source, encoder, "reference"))[1]


def test_the_published_split(source):
    part, keys = assign(source, REFERENCE), Keys.read(source)
    assert np.bincount(part).tolist() == [118527, 14816, 14816]
    assert np.bincount(part, keys.label).tolist() == [92175, 11564, 11530]


def test_the_published_dictionary(encoded):
    encoder, _ = encoded
    counts = {"gender": 2, "age": 7, "occupation": 21, "zip": 3439, "release_year": 36}
    assert encoder.feature_counts == counts | {"timestamp": 1, "genres": 23}
    assert encoder.num_features == 3529
    assert encoder.num_embeddings == 3600
    assert encoder.field_names[-1] == "genres"


def test_the_first_kept_row(encoded):
    _, rows = encoded
    assert rows.index[0].tolist() == [2, 3, 20, 31, 3496, 3529]
    assert rows.lists[0][0][0].tolist() == [3484, 3488, 3489, 3490, 3491, 3492]
    assert rows.lists[0][1][0].tolist() == [1, 0, 0, 0, 0, 0]
    assert rows.value[0, :5].tolist() == [1] * 5
    assert rows.value[0, 5] == pytest.approx(0.24064286, abs=5e-9)


def test_every_value_has_an_id(encoded):
    _, rows = encoded
    assert rows.index.min() == 1
    assert rows.index.max() == 3529
    assert len(rows.index) == 148159


def test_the_default_encoder_sees_training_rows_only(source):
    part = assign(source, SplitOptions(by="time"))
    encoder = fit_encoder(source, part)
    frame, _ = next(encode(source, encoder))
    assert encoder.unseen(frame[part == 0])["zip"] < encoder.unseen(frame[part == 2])["zip"]


def test_movielens_100k_takes_the_same_path(data_dir):
    source = open_source("movielens-100k", data_dir / "recsys" / "ml-100k", None, "reference")
    encoder = fit_encoder(source, np.zeros(0, dtype=np.int8), "reference")
    frame, rows = next(encode(source, encoder, "reference"))
    assert len(frame) == 100000 - 27145
    assert encoder.num_features == 886
    assert rows.index.max() == 886
    # Film 267 has neither title nor date.
    assert (rows.value[:, 4] == 0).sum() == (frame["release_year"] == "").sum()


@pytest.mark.slow
def test_the_split_of_the_full_file():
    parts = np.bincount(by_shuffle(739012, (0.8, 0.1, 0.1), 2019))
    assert parts.tolist() == [591209, 73901, 73902]
