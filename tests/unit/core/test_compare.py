import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from manyhead.registry import apps
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.binary import evaluate_binary
from manyhead_core.evaluate.compare import compare, compare_results
from manyhead_core.evaluate.predictions import read_results, write_results


def table(noise: float, groups: int = 60, rows: int = 900) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    group = generator.integers(0, groups, rows)
    logit = generator.normal(size=rows) + generator.normal(size=groups)[group]
    label = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    shaken = logit + noise * np.random.default_rng(1).normal(size=rows)
    columns = {"id": np.arange(rows), "group": [f"g{k}" for k in group], "site": ""}
    columns |= {"label": label, "status": "ok", "score": 1 / (1 + np.exp(-shaken))}
    return pd.DataFrame(columns)


def write(folder: Path, frame: pd.DataFrame, app: str = "autoint") -> Path:
    write_results(folder, frame, evaluate_binary(frame, draws=5), {"app": app})
    return folder


def test_a_noisier_model_is_worse_and_the_pairing_shows_it(tmp_path: Path) -> None:
    good, bad = table(0.2), table(1.5)
    runs = [write(tmp_path / "good", good), write(tmp_path / "bad", bad)]
    rows = compare_results([read_results(run) for run in runs], draws=300)
    found = {(Path(row.run).name, row.metric): row for row in rows}
    worse = found["bad", "auroc"]
    expected = [roc_auc_score(frame["label"], frame["score"]) for frame in (good, bad)]
    assert worse.difference == pytest.approx(expected[1] - expected[0])
    assert worse.low < worse.difference < worse.high < 0
    assert worse.p < 0.001
    assert found["bad", "logloss"].low > 0
    assert found["good", "auroc"].difference is None
    single = evaluate_binary(bad, draws=300).metrics["auroc"]
    assert worse.high - worse.low < 1.5 * (single.high - single.low)


def test_a_run_does_not_differ_from_itself_in_another_order(tmp_path: Path) -> None:
    frame = table(0.5)
    runs = [
        write(tmp_path / "a", frame),
        write(tmp_path / "b", frame.sample(frac=1, random_state=0)),
    ]
    rows = compare_results([read_results(run) for run in runs], draws=50)
    second = [row for row in rows if row.run.endswith("b")]
    for row in second:
        assert row.difference == pytest.approx(0, abs=1e-12)
        assert row.low == pytest.approx(0, abs=1e-12)
        assert row.high == pytest.approx(0, abs=1e-12)


def test_other_ids_are_refused_with_count_and_examples(tmp_path: Path) -> None:
    frame = table(0.5)
    other = frame[2:].assign(id=[*frame["id"][2:-1], 5000])
    runs = [write(tmp_path / "a", frame), write(tmp_path / "b", other)]
    with pytest.raises(
        DataError, match=r"3 ids are missing and 1 are new, such as .*5000"
    ) as caught:
        compare(apps(), runs)
    assert "\n" not in str(caught.value)


def test_other_labels_groups_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    frame = table(0.5)
    first = write(tmp_path / "a", frame)
    flipped = write(tmp_path / "b", frame.assign(label=1 - frame["label"]))
    with pytest.raises(DataError, match="label differs from the reference in 900 samples"):
        compare(apps(), [first, flipped])
    regrouped = write(tmp_path / "c", frame.assign(group="one"))
    with pytest.raises(DataError, match="group differs"):
        compare(apps(), [first, regrouped])
    repeated = write(tmp_path / "d", frame.assign(id=0))
    with pytest.raises(DataError, match="id 0 occurs more than once"):
        compare(apps(), [first, repeated])
    foreign = write(tmp_path / "e", frame, app="acmil")
    with pytest.raises(DataError, match="different apps: acmil, autoint"):
        compare(apps(), [first, foreign])


def test_samples_that_failed_in_one_run_are_left_out_of_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, failed = table(0.5), table(0.5)
    failed.loc[:4, ["status", "score"]] = ["failed", np.nan]
    runs = [write(tmp_path / "a", frame), write(tmp_path / "b", failed)]
    rows = compare_results([read_results(run) for run in runs], draws=20)
    assert "895 of 900 samples" in capsys.readouterr().err
    expected = roc_auc_score(frame["label"][5:], frame["score"][5:])
    assert [row.value for row in rows if row.metric == "auroc"] == pytest.approx([expected] * 2)


def test_few_groups_have_a_difference_and_no_interval(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", table(0.2, 5)), write(tmp_path / "b", table(1.0, 5))]
    rows = compare_results([read_results(run) for run in runs], draws=20)
    worse = next(row for row in rows if row.run.endswith("b") and row.metric == "auroc")
    assert worse.difference < 0
    assert (worse.low, worse.high, worse.p) == (None, None, None)


def test_the_command_prints_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write(tmp_path / "a", table(0.2)), write(tmp_path / "b", table(1.0))]
    compare(apps(), runs, out=tmp_path / "t.json", metrics="auroc,logloss", draws=50)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["auroc", "auroc", "logloss", "logloss"]
    assert len(json.loads((tmp_path / "t.json").read_text())["rows"]) == 4
    compare(apps(), runs, out=tmp_path / "t.csv", draws=5)
    assert list(pd.read_csv(tmp_path / "t.csv").columns)[:3] == ["run", "metric", "value"]


def test_mistakes_in_the_call_are_named(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", table(0.2)), write(tmp_path / "b", table(1.0))]
    with pytest.raises(UserError, match="two or more"):
        compare(apps(), runs[:1])
    with pytest.raises(UserError, match="unknown metric 'auc'; known: auroc"):
        compare(apps(), runs, metrics="auc", draws=5)
    with pytest.raises(UserError, match=r"must end in .csv or .json"):
        compare(apps(), runs, out=tmp_path / "t.txt")
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    with pytest.raises(UserError, match="exists; choose another name"):
        compare(apps(), runs, out=taken)
    assert taken.read_text() == "mine"
