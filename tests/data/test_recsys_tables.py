from __future__ import annotations

import numpy as np
import pytest

from manyhead.autoint.encoding import encode, fit_encoder
from manyhead.autoint.fields import Schema
from manyhead.autoint.inspect import inspect
from manyhead.autoint.sources import open_source
from manyhead.autoint.splitting import SplitOptions, assign
from manyhead.registry import get


@pytest.mark.parametrize(("mode", "fields"), [("default", 23), ("reference", 23)])
def test_the_avazu_sample(data_dir, mode, fields):
    source = open_source("avazu", data_dir / "recsys" / "avazu", None, mode)
    part = assign(source, SplitOptions(by="reference"))
    encoder = fit_encoder(source, part, mode)
    rows = np.concatenate([encoded.index for _, encoded in encode(source, encoder, mode)])
    assert rows.shape == (100, fields)
    assert rows.max() < encoder.num_features
    if mode == "reference":
        # A unique row id never reaches the count: its field stays on one id.
        assert (rows[:, 0] == 0).all()
        assert rows[0].tolist() == list(range(23))


@pytest.mark.parametrize("name", ["train_sample.csv", "train.parquet"])
def test_a_drafted_schema_reads_the_tiny_sets(data_dir, tmp_path, name):
    path = data_dir / "recsys" / "tiny_ctr" / name
    inspect(get("autoint"), input=path, write_schema=tmp_path / "schema.yaml")
    source = open_source("table", path, Schema.load(tmp_path / "schema.yaml"))
    encoder = fit_encoder(source, np.zeros(100, dtype=np.int8))
    frame, rows = next(encode(source, encoder))
    assert frame["clk"].sum() == 4
    assert rows.index.shape[0] == 100
    if name.endswith("csv"):
        ids, weights = rows.lists[0]
        counts = frame["click_sequence"].fillna("").str.split("^", regex=False).map(len)
        assert weights.sum() == counts[frame["click_sequence"].notna()].sum()
        assert ids.shape[1] == counts.max()
