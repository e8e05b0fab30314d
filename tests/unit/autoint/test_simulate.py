from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from manyhead.autoint.encoding import fit_encoder
from manyhead.autoint.fields import Schema
from manyhead.autoint.simulate import click_log, simulate
from manyhead.autoint.sources import open_source
from manyhead.autoint.splitting import SplitOptions, assign
from manyhead.registry import get
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.binary import roc_auc


@pytest.fixture(scope="module")
def log():
    return click_log(20000, seed=1)


def auc_of(columns: np.ndarray, label: np.ndarray) -> float:
    """Test AUC of logistic regression on one-hot columns; odd rows test."""
    hot = OneHotEncoder(handle_unknown="ignore").fit_transform(columns)
    model = LogisticRegression(max_iter=500).fit(hot[::2], label[::2])
    return roc_auc(label[1::2], model.predict_proba(hot[1::2])[:, 1])


def test_no_single_field_of_the_pair_says_anything(log):
    label = log.rows["click"].to_numpy()
    for name in log.truth["pair"]:
        assert auc_of(log.rows[[name]].to_numpy(), label) < 0.53


def test_the_pair_together_is_strong(log):
    label = log.rows["click"].to_numpy()
    pair = (log.rows["site"] + log.rows["creative"]).to_numpy()[:, None]
    assert auc_of(pair, label) > 0.68


def test_a_sum_of_fields_falls_short_of_what_can_be_reached(log):
    rows = log.rows.assign(price=pd.qcut(log.rows["price"], 8).astype(str)).astype(str)
    names = [*log.truth["planted"], *log.truth["noise"]]
    auc = auc_of(rows[names].to_numpy(), log.rows["click"].to_numpy())
    assert 0.61 < auc < 0.67
    assert 0.76 < log.truth["bayes_auc"] < 0.80


def test_rows_are_in_order_of_time_and_users_come_back(log):
    assert log.rows["time"].is_monotonic_increasing
    assert 100 < log.rows["user"].nunique() < 2000
    assert log.rows["age_group"].groupby(log.rows["user"]).nunique().max() == 1


def test_gaps_have_the_share_asked_for():
    rows = click_log(20000, missing=0.2).rows
    assert rows["price"].isna().mean() == pytest.approx(0.2, abs=0.01)
    assert rows["device"].isna().mean() == pytest.approx(0.2, abs=0.01)
    assert (rows["interests"] == "").any()


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_every_kind_of_table_reads_back_through_its_schema(tmp_path, kind):
    out = tmp_path / "log"
    simulate(get("autoint"), out, rows=500, table=kind)
    source = open_source("table", out / f"clicks.{kind}", Schema.load(out / "schema.yaml"))
    encoder = fit_encoder(source, assign(source, SplitOptions(by="group")))
    truth = json.loads((out / "truth.json").read_text())
    assert encoder.num_fields == 10
    # an unknown id, 8 sites
    assert encoder.feature_counts["site"] == 9
    assert truth["click_rate"] == pytest.approx(next(source.chunks())["click"].mean())


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        simulate(get("autoint"), tmp_path / name, rows=200, table="csv.gz", seed=3)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="exists already"):
        simulate(get("autoint"), tmp_path, rows=200)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("options", [{"rows": 3}, {"missing": 1.0}, {"noise_fields": 10}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="--"):
        click_log(**options)


def test_csv_and_parquet_encode_alike(tmp_path):
    encoded = []
    for kind in ("csv", "parquet"):
        simulate(get("autoint"), tmp_path / kind, rows=300, table=kind)
        schema = Schema.load(tmp_path / kind / "schema.yaml")
        source = open_source("table", tmp_path / kind / f"clicks.{kind}", schema)
        encoder = fit_encoder(source, np.zeros(300, dtype=np.int8))
        encoded.append(encoder.transform(next(source.chunks())))
    csv, parquet = encoded
    assert (csv.index == parquet.index).all()
    assert (csv.value == parquet.value).all()
    assert (csv.lists[0][0] == parquet.lists[0][0]).all()
    assert (csv.lists[0][1] == parquet.lists[0][1]).all()
