"""From the table of predictions to metrics, whatever the slides are labelled with."""

from __future__ import annotations

import pandas as pd

from manyhead_core.evaluate.evaluation import Evaluation
from manyhead_core.evaluate.multiclass import class_columns, evaluate_multiclass
from manyhead_core.evaluate.regression import evaluate_regression
from manyhead_core.evaluate.survival import evaluate_survival


def evaluate(frame: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> Evaluation:
    """Metrics with 95 % intervals that resample patients.

    Which metrics apply is seen from the columns: `event` means survival, `score_<class>` means
    classes, and `score` alone a number.

    Args:
        frame: Table of predictions; `group` is the patient.
        draws: Bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: A column is missing, no row is left, or a value cannot be used.
    """
    if "event" in frame:
        return evaluate_survival(frame, draws=draws, seed=seed)
    if class_columns(frame):
        return evaluate_multiclass(frame, draws=draws, seed=seed)
    return evaluate_regression(frame, draws=draws, seed=seed)
