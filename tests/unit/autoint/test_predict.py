import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit

from manyhead import registry
from manyhead.autoint import AutoInt, AutoIntConfig
from manyhead.autoint.encoder import Encoder
from manyhead.autoint.explain import explain, sample_rows
from manyhead.autoint.predict import Scorer, predict
from manyhead.autoint.simulate import click_log
from manyhead.autoint.sources import open_source
from manyhead.autoint.sources.avazu import COLUMNS
from manyhead_core.errors import ConfigError, DataError, UserError

APP = registry.get("autoint")
LOG = click_log(rows=400, seed=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder of an untrained network with a fitted encoder."""
    encoder = Encoder.fit([LOG.rows], LOG.schema)
    torch.manual_seed(0)
    net = AutoInt(
        AutoIntConfig(
            num_features=encoder.num_embeddings,
            num_fields=encoder.num_fields,
            dim=4,
            widths=(8,),
        )
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    net.preprocessor_state = encoder.state()
    folder = tmp_path_factory.mktemp("weights")
    net.save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    LOG.rows.drop(columns="click").to_csv(path, index=False)
    return path


def test_scores_are_those_of_the_model(weights: Path, table: Path, tmp_path: Path) -> None:
    predict(APP, str(weights), table, tmp_path / "out.csv", batch_size=64)
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["id"].tolist() == list(range(400))
    scorer = Scorer.load(APP, weights)
    rows = scorer.rows(LOG.rows)
    with torch.inference_mode():
        logits = scorer.net(rows.index, rows.value, rows.lists).logits.double()
    np.testing.assert_allclose(found["score"], logits.sigmoid().numpy(), rtol=1e-6)
    assert found["score"].std() > 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv", "out.csv"}


def test_parquet_gives_the_same_scores_as_csv(weights: Path, table: Path, tmp_path: Path) -> None:
    rows = LOG.rows.assign(interests=LOG.rows["interests"].str.split("|"))
    rows.to_parquet(tmp_path / "new.parquet", index=False)
    predict(APP, str(weights), table, tmp_path / "a.csv")
    predict(APP, str(weights), tmp_path / "new.parquet", tmp_path / "b.parquet")
    one, other = pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "b.parquet")
    np.testing.assert_allclose(one["score"], other["score"], rtol=1e-12)


def test_nothing_is_overwritten(weights: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("precious")
    with pytest.raises(UserError, match="exists; choose another name"):
        predict(APP, str(weights), table, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "precious"
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.parquet"):
        predict(APP, str(weights), table, tmp_path / "out.xlsx")


def test_an_absent_column_is_an_error_unless_allowed(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    rows = pd.read_csv(table)
    rows.rename(columns={"device": "devices"}).to_csv(table, index=False)
    message = "column 'device' is missing; did you mean devices"
    with pytest.raises(DataError, match=message):
        predict(APP, str(weights), table, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    predict(APP, str(weights), table, tmp_path / "out.csv", allow_missing=True)
    rows.assign(device=None).to_csv(table, index=False)
    predict(APP, str(weights), table, tmp_path / "gap.csv")
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "gap.csv").read_text()


def test_unseen_values_are_mentioned(weights: Path, table: Path, tmp_path: Path, capsys) -> None:
    rows = pd.read_csv(table)
    rows.loc[:99, "site"] = "never seen"
    rows.to_csv(table, index=False)
    predict(APP, str(weights), table, tmp_path / "out.csv")
    assert "25% of the values of site were not seen in training" in capsys.readouterr().err


def test_a_batch_goes_on_after_a_failure_and_resumes(
    weights: Path, table: Path, tmp_path: Path, capsys
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    table.rename(folder / "a.csv")
    (folder / "b.csv").write_text("nothing,useful\n1,2\n")
    assert predict(APP, str(weights), folder, out) == 0
    with (out / "report.csv").open() as file:
        report = {row["file"]: row for row in csv.DictReader(file)}
    assert report["a.csv"]["status"] == "ok"
    assert report["b.csv"]["status"] == "failed"
    assert "is missing" in report["b.csv"]["remark"]
    stamp = (out / "a.csv").stat().st_mtime_ns
    assert predict(APP, str(weights), folder, out, strict=True) == 2
    assert (out / "a.csv").stat().st_mtime_ns == stamp, "done before, so not done again"
    (folder / "a.csv").unlink()
    assert predict(APP, str(weights), folder, tmp_path / "none") == 2
    capsys.readouterr()


def test_explain_writes_tables_and_pictures(weights: Path, tmp_path: Path, capsys) -> None:
    LOG.rows.to_csv(tmp_path / "labelled.csv", index=False)
    out = tmp_path / "explained"
    explain(APP, str(weights), tmp_path / "labelled.csv", out, rows=150, examples=6, repeats=2)
    assert {path.name for path in out.iterdir()} == {
        "README.txt",
        "effects.csv",
        "importance.csv",
        "importance.png",
        "interactions.csv",
        "maps.csv",
        "maps.png",
        "pairs.csv",
        "rows.csv",
    }
    maps = pd.read_csv(out / "maps.csv")
    np.testing.assert_allclose(
        maps.groupby(["layer", "head", "query"])["weight"].sum(), 1, rtol=1e-5
    )
    pairs = pd.read_csv(out / "pairs.csv")
    assert len(pairs) == 10 * 9
    assert pairs["weight"].is_monotonic_decreasing
    rows = pd.read_csv(out / "rows.csv")
    assert rows["id"].nunique() == 6
    assert (rows["query"] != rows["key"]).all()
    assert len(pd.read_csv(out / "importance.csv")) == 10
    assert "rank correlation" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists; choose another folder"):
        explain(APP, str(weights), tmp_path / "labelled.csv", out)


def test_explain_works_without_labels(weights: Path, table: Path, tmp_path: Path, capsys) -> None:
    explain(APP, str(weights), table, tmp_path / "explained", rows=60, examples=2)
    assert not (tmp_path / "explained" / "importance.csv").exists()
    assert "no permutation importance" in capsys.readouterr().err


def test_a_calibrated_model_gives_a_second_column(
    weights: Path, table: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(weights, folder)
    meta = json.loads((folder / "preprocessor.json").read_text())
    meta["calibration"] = {"temperature": 2.0, "bias": 0.1}
    (folder / "preprocessor.json").write_text(json.dumps(meta))
    predict(APP, str(folder), table, tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv")
    expected = expit(logit(found["score"]) / 2 + 0.1)
    np.testing.assert_allclose(found["score_calibrated"], expected, rtol=1e-9)


def avazu(clicks: bool) -> str:
    rows = [
        ["click"] * clicks + list(COLUMNS),
        *(["1"] * clicks + [f"{n}", f"141021{n:02d}", *["x"] * 21] for n in range(6)),
    ]
    return "\n".join(",".join(row) for row in rows) + "\n"


def test_raw_files_of_a_published_set_are_scored_without_labels(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(avazu(clicks=True))
    source = open_source("avazu", tmp_path / "train.csv")
    encoder = Encoder.fit(source.chunks(), source.schema)
    net = AutoInt(
        AutoIntConfig(num_features=encoder.num_embeddings, num_fields=23, dim=4, widths=(4,))
    )
    net.preprocessor_state = encoder.state()
    net.save_pretrained(tmp_path / "weights")
    (tmp_path / "test.csv").write_text(avazu(clicks=False))
    words = (APP, str(tmp_path / "weights"), tmp_path / "test.csv")
    with pytest.raises(DataError, match="'hour_of_day' is missing"):
        predict(*words, tmp_path / "out.csv")
    with pytest.raises(ConfigError, match=r"--format avazu needs one file, as .*scores\.csv"):
        predict(*words, tmp_path / "scores", format="avazu")
    predict(*words, tmp_path / "out.csv", format="avazu")
    assert pd.read_csv(tmp_path / "out.csv")["id"].tolist() == list(range(6))


def test_new_data_need_no_columns_of_splits_and_segments(weights: Path, tmp_path: Path) -> None:
    schema = LOG.schema
    fields = {column for field in schema.fields for column in field.columns}
    beside = {schema.group, schema.time, *schema.segments} - fields - {None}
    assert beside, "the log has columns that are no field"
    LOG.rows.drop(columns=[schema.label, *beside]).to_csv(tmp_path / "new.csv", index=False)
    predict(APP, str(weights), tmp_path / "new.csv", tmp_path / "out.csv")
    assert len(pd.read_csv(tmp_path / "out.csv")) == len(LOG.rows)


def test_files_of_a_batch_with_like_names_keep_their_scores(
    weights: Path, tmp_path: Path, capsys
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number, name in enumerate(("log.2023.csv", "log.2024.csv", "x.csv", "x.csv.gz")):
        LOG.rows.iloc[10 * number :].to_csv(folder / name, index=False)
    assert predict(APP, str(weights), folder, out) == 0
    found = {path.name: len(pd.read_csv(path)) for path in out.iterdir()}
    assert found.pop("report.csv") == 4
    names = ("log.2023.csv", "log.2024.csv", "x.csv.csv", "x.csv.gz.csv")
    assert found == {name: 400 - 10 * number for number, name in enumerate(names)}
    LOG.rows.to_csv(folder / "report.csv", index=False)
    with pytest.raises(DataError, match=r"would both give report\.csv"):
        predict(APP, str(weights), folder, tmp_path / "other")
    capsys.readouterr()


def test_a_batch_takes_columns_from_the_names_of_sub_folders(
    weights: Path, tmp_path: Path, capsys
) -> None:
    device = LOG.rows["device"].iloc[0]
    rows = LOG.rows[LOG.rows["device"] == device]
    (tmp_path / "in" / f"device={device}").mkdir(parents=True)
    rows.drop(columns="device").to_csv(tmp_path / "in" / f"device={device}" / "a.csv")
    rows.to_csv(tmp_path / "whole.csv")
    assert predict(APP, str(weights), tmp_path / "in", tmp_path / "out") == 0
    predict(APP, str(weights), tmp_path / "whole.csv", tmp_path / "whole-out.csv")
    assert (tmp_path / "out" / f"device={device}-a.csv").read_text() == (
        tmp_path / "whole-out.csv"
    ).read_text()
    capsys.readouterr()


def test_explained_rows_are_spread_over_the_whole_table(weights: Path, tmp_path: Path) -> None:
    LOG.rows.to_csv(tmp_path / "rows.csv", index=False)
    frame, _ = sample_rows(Scorer.load(APP, weights), tmp_path / "rows.csv", 250)
    assert len(frame) == 250
    assert frame.index.is_unique
    assert frame.index[-1] > 395
    assert len(sample_rows(Scorer.load(APP, weights), tmp_path / "rows.csv", 999)[0]) == 400


def test_headerless_raw_folders_are_scored_without_labels(tmp_path: Path) -> None:
    lines = ["\t".join([str(n % 2), *(str(n + c) for c in range(11))]) for n in range(8)]
    (tmp_path / "training.txt").write_text("\n".join(lines) + "\n")
    profiles = "".join(f"{n + 10}\t{n % 3}\t{n % 6}\n" for n in range(8))
    (tmp_path / "userid_profile.txt").write_text(profiles)
    source = open_source("kdd12", tmp_path)
    scorer = Scorer(torch.nn.Identity(), Encoder.fit(source.chunks(), source.schema), None, "kdd12")
    expected = pd.concat(list(source.chunks())).drop(columns="click")
    unlabelled = "\n".join(line.split("\t", 1)[1] for line in lines) + "\n"
    (tmp_path / "training.txt").write_text(unlabelled)
    found = pd.concat(list(scorer.chunks(tmp_path)))
    pd.testing.assert_frame_equal(found, expected[list(found.columns)])
