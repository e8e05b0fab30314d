from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass
class Evaluation:
    logloss: float

    def to_json(self) -> dict:
        return {"metrics": {"logloss": {"value": self.logloss, "low": None, "high": None}}}


def evaluate(frame: pd.DataFrame) -> Evaluation:
    score = np.clip(frame["score"].to_numpy(), 1e-6, 1 - 1e-6)
    label = frame["label"].to_numpy()
    return Evaluation(float(-np.mean(label * np.log(score) + (1 - label) * np.log(1 - score))))
