import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from manyhead.acmil.evaluate import evaluate
from manyhead.acmil.model import ACMILConfig
from manyhead.acmil.scores import score_columns
from manyhead.acmil.task import concordance, selection
from manyhead_core.errors import DataError
from manyhead_core.evaluate.predictions import read_results, write_results


def table(target: str, classes: int = 3, rows: int = 60) -> tuple[pd.DataFrame, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = ACMILConfig(feature_dim=8, dim=8, num_classes=classes, target=target)
    logits = torch.randn(rows, config.num_outputs, generator=generator)
    names = [f"class {k}" for k in range(classes)]
    columns = {"id": range(rows), "group": [f"p{k // 2}" for k in range(rows)], "status": "ok"}
    columns |= {name: value.numpy() for name, value in score_columns(logits, config, names).items()}
    label = torch.randint(classes, (rows,), generator=generator)
    if target == "survival":
        label = torch.rand(rows, generator=generator)
        columns["event"] = (torch.rand(rows, generator=generator) < 0.6).numpy()
    return pd.DataFrame(columns | {"label": label.numpy()}), logits


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("classes", "classes"),
        ("ordinal", "classes"),
        ("regression", "regression"),
        ("survival", "survival"),
    ],
)
def test_the_columns_of_every_target_are_recognised(tmp_path: Path, target: str, kind: str) -> None:
    frame, _ = table(target)
    found = evaluate(frame, draws=20)
    assert found.kind == kind
    write_results(tmp_path, frame, found, {"app": "acmil"})
    assert json.loads((tmp_path / "metrics.json").read_text())["kind"] == kind
    again = evaluate(read_results(tmp_path).frame, draws=20)
    assert again.metrics == found.metrics


def test_metrics_agree_with_those_that_select_the_epoch() -> None:
    frame, logits = table("classes")
    found = evaluate(frame, draws=5).metrics
    label, event = torch.tensor(frame["label"].to_numpy()), torch.ones(len(frame), dtype=torch.bool)
    config = ACMILConfig(feature_dim=8, dim=8, num_classes=3)
    selected = selection(logits, label, event, config)
    assert found["auroc"].value == pytest.approx(selected["auroc"].item(), abs=1e-6)
    assert found["macro_f1"].value == pytest.approx(selected["f1"].item(), abs=1e-6)
    assert found["logloss"].value == pytest.approx(selected["loss"].item(), abs=1e-6)


def test_concordance_agrees_with_the_one_that_selects_the_epoch() -> None:
    frame, _ = table("survival")
    risk, time = (torch.tensor(frame[name].to_numpy()) for name in ("score", "label"))
    expected = concordance(risk, time, torch.tensor(frame["event"].to_numpy()))
    found = evaluate(frame, draws=5).metrics["concordance"].value
    assert found == pytest.approx(expected.item(), abs=1e-9)


def test_patients_are_resampled_whole() -> None:
    frame, _ = table("classes")
    twice = pd.concat([frame, frame]).assign(id=range(2 * len(frame)))
    one, two = (evaluate(part, draws=100).metrics["accuracy"] for part in (frame, twice))
    assert (one.low, one.high) == pytest.approx((two.low, two.high))
    alone = evaluate(twice.assign(group=""), draws=100).metrics["accuracy"]
    assert alone.high - alone.low < 0.9 * (one.high - one.low)


def test_failed_slides_are_left_out_and_counted() -> None:
    frame, _ = table("classes")
    frame.loc[3, ["status", "score_class 0"]] = ["failed", np.nan]
    found = evaluate(frame, draws=5)
    assert (found.num_samples, found.num_excluded) == (59, 1)


def test_a_table_without_scores_is_refused() -> None:
    with pytest.raises(DataError, match="column score is missing"):
        evaluate(pd.DataFrame({"id": [1], "label": [0]}))
