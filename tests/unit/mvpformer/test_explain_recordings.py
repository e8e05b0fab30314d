"""Where a window looked: the maps, and what the command explain writes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from array_recording import ArrayRecording, noise
from weights_folder import RATE, WINDOWS, network, save_recording, save_weights

from manyhead.__main__ import main
from manyhead.mvpformer.attention import sites_of, window_attention
from manyhead.mvpformer.baselines.cnn import CNN
from manyhead.mvpformer.model import MVPFormerConfig
from manyhead.mvpformer.preparing import Prepared, PrepareOptions
from manyhead.mvpformer.stream import Stream
from manyhead_core.attention.capture import capture
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.rollout import rollout
from manyhead_core.errors import WeightsError


@pytest.fixture
def prepared() -> Prepared:
    return Prepared(ArrayRecording(noise(3, 640), RATE), PrepareOptions(rate=RATE))


def whole_maps(stream: Stream, prepared: Prepared, number: int) -> list[torch.Tensor]:
    windows = stream.windows(prepared)[number : number + 1]
    ((_, tokens),) = stream.tokens(prepared, windows)
    with torch.inference_mode(), capture(stream.net, None, MapRequest()) as captured:
        stream.net(tokens=tokens)
    return [captured.maps[name][0].double() for name in sites_of(stream.net)]


def test_maps_are_those_of_the_newest_segment(prepared: Prepared) -> None:
    stream = Stream(net=network(), options=WINDOWS)
    windows = stream.windows(prepared)
    chosen = windows[np.array([3, 7])]
    found = window_attention(stream, prepared, chosen)
    for number, one in zip((3, 7), found, strict=True):
        maps = whole_maps(stream, prepared, number)
        for layer, whole in zip(one.layers, maps, strict=True):
            newest = whole[0].mean(0)[-3:].view(3, 4, 3)
            np.testing.assert_allclose(layer, newest.mean(0), atol=1e-6)
        pairs = maps[0][0].mean(0)[-3:].view(3, 4, 3).sum(1).numpy()
        np.testing.assert_allclose(one.distance[0, 0], 3 * np.diag(pairs).mean(), rtol=1e-5)
        np.testing.assert_allclose(one.distance[0, 2], 1.5 * (pairs[0, 2] + pairs[2, 0]), rtol=1e-5)
    np.testing.assert_allclose([one.layers.sum((1, 2)) for one in found], 1, rtol=1e-6)
    chance = np.concatenate(list(stream.probabilities(prepared, windows)))
    np.testing.assert_allclose([one.probability for one in found], chance[[3, 7]], atol=1e-6)


def test_rollout_is_that_of_all_pairs(prepared: Prepared) -> None:
    stream = Stream(net=network(), options=WINDOWS)
    windows = stream.windows(prepared)
    (one,) = window_attention(stream, prepared, windows[5:6], "rollout")
    expected = rollout(whole_maps(stream, prepared, 5))[0, -3:].view(3, 4, 3).mean(0)
    np.testing.assert_allclose(one.shown, expected, atol=1e-6)


def test_orders_put_channels_back(prepared: Prepared) -> None:
    # Without the channel part of the scores, the order of the channels changes nothing.
    net = network()
    with torch.no_grad():
        for layer in net.layers:
            layer.attention.channel_proj.weight.zero_()
    windows = Stream(net=net, options=WINDOWS).windows(prepared)[6:7]
    (plain,) = window_attention(Stream(net=net, options=WINDOWS), prepared, windows)
    (mean,) = window_attention(Stream(net=net, options=WINDOWS, orders=4), prepared, windows)
    np.testing.assert_allclose(mean.layers, plain.layers, atol=1e-6)


def test_a_baseline_has_nothing_to_explain() -> None:
    with pytest.raises(WeightsError, match="CNN has no attention to explain"):
        sites_of(CNN(MVPFormerConfig(segment_samples=64)))


def explain(folder: Path, out: str, *more: object) -> int:
    words = ("--weights", folder / "w", "--input", folder / "data", "--out", folder / out, *more)
    return main(["mvpformer", "explain", *map(str, words)])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "w")
    save_recording(tmp_path / "data" / "a.npz")
    assert explain(tmp_path, "times", "--times", "[12.5, 20]") == 0
    about = json.loads((tmp_path / "times" / "a.json").read_text())
    assert [row["step_stop_s"] for row in about["explained"]] == [13, 21]
    table = pd.read_csv(tmp_path / "times" / "a_1.csv")
    assert list(table) == ["time", "channel", "shown", "layer_1", "layer_2"]
    assert len(table) == 12
    assert table["shown"].sum() == pytest.approx(1, rel=1e-4)
    assert (tmp_path / "times" / "a_2.png").read_bytes()[:4] == b"\x89PNG"
    assert explain(tmp_path, "late", "--times", "[31]") == 2
    report = (tmp_path / "late" / "report.csv").read_text()
    assert "no step holds 31 s; there are steps from 0 to 30 s" in report
    assert "research use only" in capsys.readouterr().out


def test_command_takes_what_predict_found(tmp_path: Path) -> None:
    save_weights(tmp_path / "w")
    save_recording(tmp_path / "data" / "a.npz")
    words = ["--weights", str(tmp_path / "w"), "--input", str(tmp_path / "data"), "--out"]
    assert main(["mvpformer", "predict", *words, str(tmp_path / "p")]) == 0
    assert explain(tmp_path, "own") == 0
    assert explain(tmp_path, "given", "--predictions", tmp_path / "p") == 0
    own, given = ((tmp_path / name / "a.json").read_text() for name in ("own", "given"))
    steps = [[row["step_stop_s"] for row in json.loads(text)["explained"]] for text in (own, given)]
    assert steps[0] == steps[1] != []
