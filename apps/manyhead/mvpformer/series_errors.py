"""How wrong forecasts are, in the units that forecasting benchmarks publish."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from manyhead.mvpformer.series import SeriesData
from manyhead.mvpformer.series_windows import SeriesBatch, SeriesPreprocessor
from manyhead_core.errors import ConfigError


@torch.no_grad()
def forecast_errors(
    net: torch.nn.Module, data: SeriesData, part: str = "test", season: int = 0
) -> pd.DataFrame:
    """Mean squared and absolute errors of each channel, and of all together.

    Everything is divided by the channel's deviation in the training rows, as published tables of
    forecasting errors do. Rows of the table: channels, then `all`. Columns: `mse` and `mae` of the
    network, the same with `_last` of repeating the last value, and with `_season` of repeating the
    last season; a network that does not beat both has learned nothing.

    Args:
        net: Network with the target `forecast`, in evaluation mode.
        data: The series.
        part: `validation` or `test`.
        season: Rows of a season, at most those of a window; 0 knows none.

    Raises:
        ConfigError: The season is longer than a window.
    """
    data.setup({"validation": "validate"}.get(part, part))
    preprocessor = data.preprocessor
    assert preprocessor is not None  # noqa: S101 - setup has fitted it
    if not 0 <= season <= preprocessor.rows:
        raise ConfigError(
            f"season: must be 0, or at most the {preprocessor.rows} rows of a window, got {season}"
        )
    device = next(net.parameters()).device
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in data.part_loader(part):
        moved = SeriesBatch(*(x.to(device) for x in batch))
        guesses = {"": net(moved.signal).prediction.float()} | _naive(moved, preprocessor, season)
        for name, guess in guesses.items():
            wrong = (guess - moved.future) * (moved.scale / _deviation(preprocessor, device))[
                ..., None
            ]
            for kind, error in (("mse", wrong.square()), ("mae", wrong.abs())):
                total = error.double().mean(-1).sum(0).cpu()
                sums[kind + name] = sums.get(kind + name, torch.zeros_like(total)) + total
        count += len(batch.number)
    table = pd.DataFrame(
        {name: total.numpy() / count for name, total in sums.items()}, index=preprocessor.columns
    )
    table.loc["all"] = table.mean()
    return table.rename_axis("channel")


def _naive(batch: SeriesBatch, preprocessor: SeriesPreprocessor, season: int) -> dict[str, Tensor]:
    past = preprocessor.past(batch)
    horizon = preprocessor.horizon
    found = {"_last": past[..., -1:].expand(-1, -1, horizon)}
    if season:
        repeats = int(np.ceil(horizon / season))
        found["_season"] = past[..., -season:].repeat(1, 1, repeats)[..., :horizon]
    return found


def _deviation(preprocessor: SeriesPreprocessor, device: torch.device) -> Tensor:
    return torch.from_numpy(preprocessor.scale).to(device)
