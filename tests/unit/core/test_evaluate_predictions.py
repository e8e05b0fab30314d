import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.registry import get
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.binary import Evaluation, evaluate_binary
from manyhead_core.evaluate.calibrate import calibrate, saved_temperature
from manyhead_core.evaluate.predictions import read_predictions, read_results, write_results


def table(rows: int = 400, seed: int = 0, sharpness: float = 1.0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    logit = generator.normal(size=rows) * 1.5
    label = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    columns = {"id": np.arange(rows), "group": "", "site": "", "label": label, "status": "ok"}
    columns["score"] = 1 / (1 + np.exp(-logit * sharpness))
    columns["segment_age"] = np.where(logit > 0, "018", "NA")
    return pd.DataFrame(columns)


def write(folder: Path, frame: pd.DataFrame, checkpoint: str = "c") -> None:
    meta = {"app": "autoint", "config": "x", "seed": 0, "checkpoint_hash": checkpoint}
    write_results(folder, frame, evaluate_binary(frame, draws=20), meta)


def test_scores_come_back_to_the_last_bit_and_text_as_text(tmp_path: Path) -> None:
    frame = table()
    frame.loc[:2, "score"] = [0.1 + 0.2, 5e-324, np.nextafter(1, 0)]
    write(tmp_path, frame)
    found = read_results(tmp_path).frame
    assert (found["score"].to_numpy() == frame["score"].to_numpy()).all()
    assert found["id"].tolist()[:2] == ["0", "1"]
    assert set(found["segment_age"]) == {"018", "NA"}
    assert (found["group"] == "").all()


def test_single_precision_scores_are_written_as_the_float64_they_are(tmp_path: Path) -> None:
    frame = table()
    frame["score"] = frame["score"].astype(np.float32)
    write(tmp_path, frame)
    found = read_predictions(tmp_path)["score"].to_numpy()
    assert (found == frame["score"].to_numpy().astype(np.float64)).all()


def test_metrics_json_is_valid_and_complete(tmp_path: Path) -> None:
    write(tmp_path, table())
    text = (tmp_path / "metrics.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["format"] == 1
    assert found["num_samples"] == 400
    assert set(found["metrics"]["auroc"]) == {"value", "low", "high"}
    assert {"calibration", "segments", "baseline", "interval", "checkpoint_hash"} <= set(found)


def test_a_metric_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    class Other:
        def to_json(self) -> dict:
            return {"metrics": {"odd": {"value": np.float64("nan"), "low": None, "high": np.inf}}}

    write_results(tmp_path, table(), Other(), {"app": "autoint"})
    found = read_results(tmp_path).metrics
    assert found["metrics"]["odd"] == {"value": None, "low": None, "high": None}
    assert found["num_samples"] == 400


def test_nothing_is_left_of_an_interrupted_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, table())
    before = (tmp_path / "predictions.csv").read_bytes()

    def full(_: pd.DataFrame, path: Path, **_options: object) -> None:
        path.write_text("id,lab")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(DataError, match="No space left on device"):
        write(tmp_path, table(seed=1))
    assert (tmp_path / "predictions.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.csv"]


def test_reading_says_what_is_missing_and_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder does not exist"):
        read_results(tmp_path / "none")
    with pytest.raises(DataError, match=f"run manyhead APP test --run {tmp_path}"):
        read_results(tmp_path)
    (tmp_path / "validation").mkdir()
    with pytest.raises(DataError, match=f"run manyhead APP validate --run {tmp_path}$"):
        read_results(tmp_path / "validation")
    write(tmp_path, table())
    (tmp_path / "predictions.csv").write_text("id,status\n1,ok\n")
    with pytest.raises(DataError, match="column label is missing"):
        read_results(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="damaged or not JSON"):
        read_results(tmp_path)


def test_calibrate_fits_on_validation_and_shows_the_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "validation", table(seed=1, rows=4000, sharpness=2.0))
    write(tmp_path, table(seed=2, rows=4000, sharpness=2.0))
    calibrate(get("autoint"), tmp_path)
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert found["temperature"] == pytest.approx(2.0, rel=0.1)
    assert found["bias"] == 0
    effect = found["effect"]["test"]
    assert effect["after"]["logloss"] < effect["before"]["logloss"]
    assert "temperature 1.98" in capsys.readouterr().out
    saved = saved_temperature(read_results(tmp_path))
    assert saved is not None
    assert saved.temperature == found["temperature"]
    calibrate(get("autoint"), tmp_path)  # a second start replaces its own file


def test_the_test_predictions_do_not_change_the_fit(tmp_path: Path) -> None:
    write(tmp_path / "validation", table(seed=1))
    calibrate(get("autoint"), tmp_path)
    alone = json.loads((tmp_path / "calibration.json").read_text())
    write(tmp_path, table(seed=2, sharpness=5.0))
    calibrate(get("autoint"), tmp_path)
    both = json.loads((tmp_path / "calibration.json").read_text())
    assert alone["temperature"] == both["temperature"]
    assert "test" not in alone["effect"]


def test_calibrate_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path, table())
    with pytest.raises(DataError, match=f"run manyhead autoint validate --run {tmp_path}"):
        calibrate(get("autoint"), tmp_path)
    write(tmp_path / "validation", table(seed=1), checkpoint="other")
    with pytest.raises(DataError, match="different checkpoints"):
        calibrate(get("autoint"), tmp_path)
    write(tmp_path / "validation", table(seed=1))
    mine = tmp_path / "mine.json"
    mine.write_text('{"important": 1}')
    with pytest.raises(UserError, match="is no calibration"):
        calibrate(get("autoint"), tmp_path, out=mine)
    assert mine.read_text() == '{"important": 1}'
    assert saved_temperature(read_results(tmp_path)) is None


def test_evaluation_is_plain_json() -> None:
    evaluation = evaluate_binary(table(), draws=20)
    assert isinstance(evaluation, Evaluation)
    assert json.loads(json.dumps(evaluation.to_json()))["num_samples"] == 400
