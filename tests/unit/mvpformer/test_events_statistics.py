import dataclasses

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score

from manyhead.mvpformer.events import statistics
from manyhead.mvpformer.events.postprocess import runs
from manyhead.mvpformer.events.statistics import PatientStatistics
from manyhead.mvpformer.events.tallies import Counted, Steps, count_events, count_steps, pooled
from manyhead.mvpformer.recording import Interval


def patient(seed: int, number: int = 300) -> Counted:
    generator = np.random.default_rng(seed)
    start = np.arange(number) * 5.0
    label = np.zeros(number, int)
    for first in generator.choice(number // 30, seed % 4, replace=False) * 30:
        label[first : first + 6] = 1
    probability = np.round(np.clip(0.5 * label + 0.6 * generator.random(number), 0, 1), 3)
    if label.any() and seed % 3 == 0:
        first = int(label.argmax())
        probability[first : first + 6] *= 0.3
    steps = Steps(
        start=start, stop=start + 5, label=label, probability=probability,
        detected=probability > 0.595,
    )  # fmt: skip
    return count_steps(steps, runs(start, start + 5, label > 0), 5.0 * number)


PATIENTS = [patient(seed) for seed in range(7)]


def values(patients: list[Counted], weights: np.ndarray | None = None) -> dict[str, float]:
    found = PatientStatistics(patients)
    weights = np.ones((1, len(patients))) if weights is None else weights
    return dict(zip(found.names, found(weights)[0], strict=True))


def test_pooled_metrics_are_those_of_all_steps_together() -> None:
    found = values(PATIENTS)
    label = np.concatenate([p.label for p in PATIENTS])
    score = np.concatenate([p.probability for p in PATIENTS])
    assert found["step_auroc_pooled"] == pytest.approx(roc_auc_score(label, score))
    expected = average_precision_score(label, score)
    assert found["step_average_precision_pooled"] == pytest.approx(expected)
    assert found["step_kappa_pooled"] == pytest.approx(cohen_kappa_score(label, score > 0.595))
    whole = pooled(PATIENTS)
    hits, alarms = whole.events.hits, whole.events.alarms
    assert found["event_precision_pooled"] == pytest.approx(hits / (hits + alarms))
    assert found["false_alarms_per_day_pooled"] == pytest.approx(alarms / (7 * 1500 / 86_400))


def test_means_leave_out_patients_in_which_a_metric_is_undefined() -> None:
    found = values(PATIENTS)
    areas = [roc_auc_score(p.label, p.probability) for p in PATIENTS if p.label.any()]
    assert len(areas) == 5
    assert found["step_auroc"] == pytest.approx(np.mean(areas))
    share = [p.events.hits / p.events.true for p in PATIENTS if p.events.true]
    assert found["event_sensitivity"] == pytest.approx(np.mean(share))
    per_day = [p.events.alarms * 86_400 / 1500 for p in PATIENTS]
    assert found["false_alarms_per_day"] == pytest.approx(np.mean(per_day))
    assert found["false_alarms_per_hour"] == pytest.approx(np.mean(per_day) / 24)


def test_delays_of_all_seizures() -> None:
    found = values(PATIENTS)
    late = np.concatenate([p.delays for p in PATIENTS])
    assert np.isnan(late).any()
    assert found["delay_median"] == np.nanmedian(late)
    assert found["within_10_s"] == np.mean(late <= 10)
    assert found["within_60_s"] == np.mean(late <= 60)


def test_a_weight_is_a_patient_drawn_so_often() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        drawn = generator.integers(0, 7, 7)
        weights = np.bincount(drawn, minlength=7)[None].astype(float)
        expected = values([PATIENTS[k] for k in drawn])
        assert values(PATIENTS, weights) == pytest.approx(expected, nan_ok=True)


def test_draws_without_a_seizure_are_undefined() -> None:
    weights = np.eye(7)[[0]]
    found = values(PATIENTS, weights)
    for name in ("event_sensitivity", "step_auroc", "step_auroc_pooled", "delay_median"):
        assert np.isnan(found[name])
    for name in ("step_average_precision_pooled", "within_10_s", "step_sensitivity_pooled"):
        assert np.isnan(found[name])
    assert found["false_alarms_per_day"] > 0
    assert found["event_f1"] == 0


def test_many_positive_steps_share_points_of_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = values(PATIENTS)
    monkeypatch.setattr(statistics, "POINTS", 30)
    thin = values(PATIENTS)
    assert thin["step_auroc_pooled"] == exact["step_auroc_pooled"]
    near = thin["step_average_precision_pooled"]
    assert near == pytest.approx(exact["step_average_precision_pooled"], abs=0.02)


def test_events_alone_have_no_metrics_of_steps() -> None:
    seen = count_events([Interval(100, 120)], [Interval(110, 130)], 3600)
    alone = [seen, count_events([], [], 3600)]
    found = values(alone)
    assert not [name for name in found if name.startswith("step")]
    assert (found["event_f1"], found["event_f1_pooled"], found["delay_median"]) == (1, 1, 10)


def test_recordings_of_a_patient_are_added() -> None:
    both = pooled(PATIENTS[1:3])
    assert both.events == tuple(
        a + b for a, b in zip(PATIENTS[1].events, PATIENTS[2].events, strict=True)
    )
    assert (both.recordings, both.seizures, len(both.label)) == (2, 3, 600)
    assert pooled(PATIENTS[:1]).steps == PATIENTS[0].steps
    assert dataclasses.replace(both, recordings=1).seizures == 3
