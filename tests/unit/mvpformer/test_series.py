"""Any multivariate series: windows and parts without leakage, scales, learned forecasts."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig, MVPFormerOutput
from manyhead.mvpformer.series import SeriesData, forecast
from manyhead.mvpformer.series_errors import forecast_errors
from manyhead.mvpformer.series_table import read_series
from manyhead.mvpformer.series_windows import SeriesBatch, SeriesPreprocessor
from manyhead_core.errors import ConfigError, DataError, WeightsError

SIZES = {"patch": 16, "num_segments": 2, "horizon": 5, "fractions": (0.6, 0.2, 0.2)}


def table(rows: int = 200) -> pd.DataFrame:
    """Channels whose values say their row: a, and b with another scale."""
    number = np.arange(rows, dtype=float)
    return pd.DataFrame({"a": number, "b": 1000 - 10 * number})


def write(folder: Path, frame: pd.DataFrame) -> Path:
    path = folder / "table.csv"
    frame.to_csv(path, index=False)
    return path


def prepared(folder: Path, frame: pd.DataFrame | None = None, **options: Any) -> SeriesData:
    data = SeriesData(write(folder, table() if frame is None else frame), **SIZES | options)
    data.prepare()
    return data


def batches(data: SeriesData, part: str) -> SeriesBatch:
    """All windows of a part as one batch, in order."""
    data.batch_windows = 1000
    found = next(iter(data.part_loader(part)))
    order = found.number.argsort()
    return SeriesBatch(*(x[order] for x in found))


def test_signal_and_future_hold_the_rows_of_the_table(tmp_path: Path) -> None:
    batch = batches(prepared(tmp_path), "train")
    assert batch.signal.shape[1:] == (2, 2, 16)
    assert batch.future.shape[1:] == (2, 5)
    third = 3
    past = batch.signal[third].permute(1, 0, 2).flatten(1) / 30
    rows = torch.arange(3.0, 35)
    torch.testing.assert_close(
        past * batch.scale[third, :, None] + batch.mean[third, :, None],
        torch.stack([rows, 1000 - 10 * rows]),
        rtol=1e-5,
        atol=1e-3,
    )
    torch.testing.assert_close(past.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(past.std(1, correction=0), torch.ones(2))
    future = torch.arange(35.0, 40)
    torch.testing.assert_close(
        batch.restored(batch.future)[third],
        torch.stack([future, 1000 - 10 * future]),
        rtol=1e-5,
        atol=1e-3,
    )


@pytest.mark.parametrize("look_back", [True, False])
def test_parts_ask_for_their_own_rows_only(tmp_path: Path, look_back: bool) -> None:
    data = prepared(tmp_path, look_back=look_back)
    asked, seen = {}, {}
    for part in ("train", "validation", "test"):
        start = data.parts[part]
        asked[part] = {int(s) + 32 + k for s in start for k in range(5)}
        seen[part] = {int(s) + k for s in start for k in range(32)}
    assert max(asked["train"]) < 120 <= min(asked["validation"])
    assert max(asked["validation"]) < 160 <= min(asked["test"])
    assert max(asked["test"]) == 199
    # Nothing that is asked for in a later part was seen in training.
    assert max(seen["train"]) < 120
    assert (min(seen["validation"]) < 120) is look_back
    if look_back:
        assert min(asked["validation"]) == 120
        assert min(asked["test"]) == 160


def test_scales_see_the_training_rows_alone(tmp_path: Path) -> None:
    frame = table()
    frame.loc[120:, "a"] = 1e6
    found = prepared(tmp_path, frame, normalise="train").preprocessor
    assert found is not None
    rows = np.arange(120)
    np.testing.assert_allclose(found.mean[0], rows.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.scale[0], rows.std(), rtol=1e-6)


def test_a_constant_window_is_no_division_by_zero(tmp_path: Path) -> None:
    frame = table()
    frame.loc[:60, "a"] = 3.0
    frame["c"] = 7.0
    batch = batches(prepared(tmp_path, frame), "train")
    assert all(x.isfinite().all() for x in batch)
    assert batch.signal[0, :, 0].abs().max() == 0
    torch.testing.assert_close(batch.restored(batch.future)[0, 2], torch.full((5,), 7.0))


def test_no_window_spans_a_gap_in_time(tmp_path: Path) -> None:
    frame = table()
    time = pd.date_range("2026-01-01", periods=200, freq="h").to_series(index=range(200))
    time[70:] += pd.Timedelta("3h")
    data = prepared(tmp_path, frame.assign(date=time))
    assert data.preprocessor is not None
    assert data.preprocessor.columns == ("a", "b")
    start = data.parts["train"]
    assert not any(s < 70 <= s + 36 for s in start)
    assert {33, 70} <= set(start.tolist())


def test_stride_thins_out_training_alone(tmp_path: Path) -> None:
    every, some = prepared(tmp_path), prepared(tmp_path, stride=4)
    assert some.parts["train"].tolist() == every.parts["train"].tolist()[::4]
    assert len(some.parts["test"]) == len(every.parts["test"])


def test_the_class_is_that_of_the_last_row(tmp_path: Path) -> None:
    names = np.where(np.arange(200) % 50 < 40, "calm", "storm")
    data = prepared(tmp_path, table().assign(state=names), label="state", target="classes")
    assert data.net_overrides() == {"segment_samples": 16, "target": "classes", "num_classes": 2}
    batch = batches(data, "train")
    last = batch.number.numpy() + 31
    np.testing.assert_array_equal(batch.label.numpy(), last % 50 >= 40)
    assert batch.future.shape[-1] == 0
    weights, count = data.class_weights().numpy(), np.bincount(batch.label)
    assert weights @ count == pytest.approx(count.sum())
    about = data.about(batch.number.tolist())
    assert about["id"][0] == "series:31"
    np.testing.assert_array_equal(~np.isnan(about["event_start"]), batch.label == 1)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "npz"])
def test_all_kinds_of_tables_say_the_same(tmp_path: Path, kind: str) -> None:
    frame = table(40)
    path = tmp_path / f"table.{kind}"
    if kind == "npz":
        np.savez(path, values=frame.to_numpy(), columns=list(frame))
    elif kind == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    found = read_series(path)
    assert found.columns == ("a", "b")
    np.testing.assert_array_equal(found.values, frame.to_numpy(dtype=np.float32))
    assert read_series(path, columns=["b"]).values.shape == (40, 1)


def test_empty_cells_are_refused_or_take_the_value_before(tmp_path: Path) -> None:
    frame = table(40)
    frame.loc[5:6, "b"] = np.nan
    path = write(tmp_path, frame)
    with pytest.raises(DataError, match=r"column 'b' has 2 empty cells; .*data.missing=last"):
        read_series(path)
    assert read_series(path, missing="last").values[4:8, 1].tolist() == [960, 960, 960, 930]
    write(tmp_path, frame.iloc[5:])
    with pytest.raises(DataError, match="cut the first rows"):
        read_series(path, missing="last")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"a": "x"}, {}, r"column 'a', row 1: 'x' is no finite number; .*data.columns"),
        ({}, {"columns": ["c"]}, r"data.columns: table.csv has no column 'c'; it has a, b"),
        ({}, {"label": "c"}, r"data.label: table.csv has no column 'c'"),
        ({"y": 1}, {"label": "y"}, "has one class alone"),
        ({}, {"columns": ["a", "b"], "label": "b"}, "without them"),
        ({"time": 3.0}, {}, r"row 2: the time does not grow"),
        ({"time": "noon"}, {}, r"'time' is no time; .*data.time"),
    ],
)
def test_tables_that_cannot_be_used_are_named(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, table(20).assign(**change))
    with pytest.raises(DataError, match=message):
        read_series(path, **options)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", signal=np.zeros(3))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR")
    for name, message in {
        "other.npz": "array values",
        "empty.csv": "cannot be read",
        "broken.parquet": "cannot be read",
        "table.xlsx": "is none of",
        "missing.csv": "does not exist",
    }.items():
        with pytest.raises(DataError, match=message):
            read_series(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 8}, "data.patch: must be at least 14, got 8"),
        ({"horizon": 0}, "data.horizon"),
        ({"target": "classes"}, "data.label"),
        ({"fractions": (0.5, 0.1, 0.1)}, "data.fractions"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SeriesData(Path("table.csv"), **SIZES | options)


def test_a_table_too_short_for_a_window_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no window of 37 rows fits into the 24 training rows"):
        prepared(tmp_path, table(40))
    short = prepared(tmp_path, fractions=(0.98, 0.01, 0.01))
    with pytest.raises(DataError, match="the test part"):
        short.setup("test")


def test_the_preprocessor_comes_back_from_its_state(tmp_path: Path) -> None:
    first = prepared(tmp_path).preprocessor
    assert first is not None
    meta, tensors = first.state()
    again = SeriesPreprocessor.from_state(meta, tensors)
    values = np.random.default_rng(0).normal(size=(3, 37, 2)).astype(np.float32)
    for ours, theirs in zip(first.batch(values), again.batch(values), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(WeightsError, match="not trained on a series"):
        SeriesPreprocessor.from_state({"format": 1}, {})


class Trend(torch.nn.Module):
    """Goes on with the last step of each channel."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.steps = torch.nn.Parameter(torch.arange(1.0, horizon + 1))

    def forward(self, signal: torch.Tensor) -> MVPFormerOutput:
        past = signal.transpose(1, 2).flatten(2) / 30
        step = past[..., -1:] - past[..., -2:-1]
        return MVPFormerOutput(None, past[..., -1:] + step * self.steps, signal, signal)


def test_errors_are_in_deviations_of_the_training_rows(tmp_path: Path) -> None:
    found = forecast_errors(Trend(5), prepared(tmp_path), season=4)
    assert found.index.tolist() == ["a", "b", "all"]
    np.testing.assert_allclose(found[["mse", "mae"]], 0, atol=1e-4)
    deviation = np.arange(120).std()
    # Repeating the last value of a ramp is wrong by 1, 2, ... rows; a season of 4 always by 4, 8.
    last, seasonal = np.arange(1, 6) / deviation, np.array([4, 4, 4, 4, 8]) / deviation
    for column, wrong in {"_last": last, "_season": seasonal}.items():
        np.testing.assert_allclose(found[f"mae{column}"], np.mean(wrong), rtol=1e-4)
        np.testing.assert_allclose(found[f"mse{column}"], np.mean(wrong**2), rtol=1e-4)
    with pytest.raises(ConfigError, match="at most the 32 rows"):
        forecast_errors(Trend(5), prepared(tmp_path), season=33)


def test_mvpformer_learns_to_forecast_waves_in_units_of_the_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    time = np.arange(400)
    frame = pd.DataFrame(
        {
            "a": 20 + 5 * np.sin(2 * np.pi * time / 16),
            "b": -300 + 80 * np.cos(2 * np.pi * time / 12),
        }
    )
    data = prepared(tmp_path, frame, horizon=8, batch_windows=32)
    sizes = {"dim": 32, "num_layers": 1, "num_heads": 2, "num_key_heads": 1, "hidden_dim": 32}
    config = MVPFormerConfig(
        **sizes, **data.net_overrides(), dropout=0.0, attention_dropout=0.0, amplitude="rms"
    )
    net = MVPFormer(config).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(12):
        for batch in data.train_dataloader():
            optimiser.zero_grad()
            loss = torch.nn.functional.mse_loss(net(batch.signal).prediction, batch.future)
            loss.backward()
            optimiser.step()
    net.eval()
    found = forecast(net, data.preprocessor, frame.to_numpy()[:392])
    wrong = np.abs(found - frame.to_numpy()[392:])
    assert found.shape == (8, 2)
    assert wrong[:, 0].mean() < 1
    assert wrong[:, 1].mean() < 16
    with pytest.raises(DataError, match=r"needs 32 rows or more of the 2 channels a, b"):
        forecast(net, data.preprocessor, frame.to_numpy()[:31])
