"""The command embed: a file of embeddings for each recording."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from weights_folder import WINDOWS, network, save_recording, save_weights

from manyhead.__main__ import main
from manyhead.mvpformer.detector import Recordings
from manyhead.mvpformer.preparing import PrepareOptions
from manyhead.mvpformer.readers import ReadOptions
from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.tracks import Track, WindowSet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(tmp_path / "w", target="next_token")
    save_recording(tmp_path / "data" / "a.npz", seconds=12)
    return tmp_path


def embed(folder: Path, out: str, *more: object) -> int:
    words = ("--weights", folder / "w", "--input", folder / "data", "--out", folder / out, *more)
    return main(["mvpformer", "embed", *map(str, words)])


@torch.no_grad()
def expected(folder: Path) -> np.ndarray:
    net = network(target="next_token")
    prepare = PrepareOptions(rate=64.0)
    with Recordings.find(folder / "data", "auto", ReadOptions(), prepare).opened("a") as prepared:
        windows = Stream(net=net, options=WINDOWS).windows(prepared)
        batch = WindowSet([Track(prepared, "p", windows)], 4, 64).read(np.arange(12), 3)
    return net(batch.signal).hidden[:, -1].numpy()


def test_h5_holds_the_newest_segments(folder: Path) -> None:
    assert embed(folder, "out", "--batch_windows", 5) == 0
    with h5py.File(folder / "out" / "a.h5") as file:
        np.testing.assert_allclose(file["embedding"][:], expected(folder), atol=1e-5)
        np.testing.assert_array_equal(file["stop"][:], np.arange(1, 13))
        assert list(file["channels"].asstr()[:]) == ["A1", "A2", "A3"]
        assert "research use only" in file.attrs["note"]


def test_npz_pools_channels(folder: Path) -> None:
    assert embed(folder, "out", "--file", "npz", "--pool", "channels") == 0
    with np.load(folder / "out" / "a.npz") as file:
        np.testing.assert_allclose(file["embedding"], expected(folder).mean(1), atol=1e-5)
        assert file["channels"].tolist() == ["A1", "A2", "A3"]


def test_goes_on_and_refuses_another_setup(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(folder, "out") == 0
    save_recording(folder / "data" / "b.npz", seconds=8, seed=1)
    capsys.readouterr()
    assert embed(folder, "out") == 0
    assert "1 of 2 recordings are done already" in capsys.readouterr().err
    assert embed(folder, "out", "--pool", "channels") == 2
    assert 'was made with pool "none", not "channels"' in capsys.readouterr().err
