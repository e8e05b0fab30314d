"""Seizure detection on real recordings, through the command line, with a small random network."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from manyhead.__main__ import main
from manyhead.mvpformer.detector import Recordings
from manyhead.mvpformer.model import MVPFormer, MVPFormerConfig
from manyhead.mvpformer.preparing import PrepareOptions
from manyhead.mvpformer.preprocessor import SeizurePreprocessor
from manyhead.mvpformer.readers import ReadOptions
from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.tracks import Track, WindowSet
from manyhead.mvpformer.windows import WindowOptions

WINDOWS = WindowOptions(num_segments=6)


def network() -> MVPFormer:
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "num_key_heads": 1, "hidden_dim": 16}
    net = MVPFormer(MVPFormerConfig(**sizes, max_channels=16)).eval()
    torch.nn.init.normal_(net.head.weight, std=2)
    return net


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    net = network()
    net.preprocessor_state = SeizurePreprocessor(windows=WINDOWS).state()
    net.save_pretrained(tmp_path / "w")
    return tmp_path / "w"


@torch.no_grad()
def test_swec(data_dir: Path, weights: Path, tmp_path: Path) -> None:
    root, out = data_dir / "ieeg" / "swec_layout", tmp_path / "out"
    words = ["--weights", str(weights), "--input", str(root), "--out", str(out)]
    assert main(["mvpformer", "predict", *words]) == 0
    steps = pd.read_csv(out / "ID01_steps.tsv", sep="\t")
    net = network()
    with Recordings.find(root, "auto", ReadOptions(), PrepareOptions()).opened("ID01") as prepared:
        windows = Stream(net=net, options=WINDOWS).windows(prepared)
        data = WindowSet([Track(prepared, "p", windows)], 6, 2560)
        found = [net(data.read(np.array([k]), 6).signal).logits for k in range(len(windows))]
        stream = Stream(net=net, options=WINDOWS)
        streamed = np.concatenate(list(stream.probabilities(prepared, windows)))
    expected = torch.cat(found).double().softmax(-1)[:, 1].numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(streamed, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(steps["p"], expected, rtol=0, atol=2e-6)
    assert {path.name for path in out.iterdir()} >= {"ID14.png", "ID14_events.tsv", "ID14.json"}


def test_bids(
    data_dir: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    root = data_dir / "ieeg" / "bids_ieeg"
    words = ["--weights", str(weights), "--input", str(root), "--out", str(out)]
    assert main(["mvpformer", "predict", *words]) == 0
    report = pd.read_csv(out / "report.csv").set_index("id")
    ok = report[report["status"] == "ok"]
    assert list(ok["annotated"]) == [2]
    # The excerpt of 3 s has more channels than the table has rows, and no whole segment.
    (error,) = report[report["status"] == "failed"]["error"]
    assert "84 channels" in error
    assert "annotated: 1 recordings" in capsys.readouterr().out
