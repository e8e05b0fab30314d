from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from manyhead.acmil.encoders import Transform, TransformOptions, open_encoder
from manyhead.acmil.encoders.encoder import hash_weights
from manyhead.acmil.encoders.handcrafted32 import describe
from manyhead.acmil.encoders.transform import STATISTICS, resize
from manyhead_core.errors import ConfigError, WeightsError

MODULE = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 7, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))

def scaled():
    return small(), lambda tiles: tiles.float() / 255

def number():
    return 3

def maps():
    return nn.Conv2d(3, 4, 3)

def demanding(path):
    return small()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user, importable as `own_encoder`."""
    (tmp_path / "own_encoder.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_encoder", raising=False)
    return tmp_path


@pytest.fixture
def tiles():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 48, 48, 3), generator=generator, dtype=torch.uint8)


def test_handcrafted_numbers_of_simple_tiles():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    found = describe(red)
    np.testing.assert_allclose(found[:12], [1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0], atol=1e-6)
    assert found[12] == 1
    assert found[13:24].sum() == 0
    assert found[24:].sum() == 0  # no gradient anywhere
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 200
    found = describe(stripes)
    assert found[12:24].sum() == 0  # grey has no hue
    assert found[24] == pytest.approx(1)  # gradients point along x
    assert describe(stripes.transpose(1, 0, 2).copy())[28] == pytest.approx(1)


def test_handcrafted_is_an_encoder_like_any_other(tiles):
    encoder = open_encoder("handcrafted32")
    found = encoder.encode(tiles)
    assert found.shape == (5, encoder.feature_dim) == (5, 32)
    assert encoder.weights_sha256 == ""
    assert encoder.name == "handcrafted32"
    torch.testing.assert_close(found[3], torch.from_numpy(describe(tiles[3].numpy())))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(300, 256), (256, 300), (100, 90)])
def test_resizing_is_that_of_image_libraries(interpolation, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = resize(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2), 224, interpolation)
    height, width = found.shape[-2:]
    assert min(height, width) == 224
    assert max(height, width) == int(224 * max(shape) / min(shape))
    way = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    image = Image.fromarray(pixels).resize((width, height), way[interpolation])
    off = np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(image))
    assert off.max() <= 2
    assert (off > 0).mean() < 0.01  # of noise, the worst there is


def test_reference_transform():
    tile = torch.full((1, 3, 256, 256), 51, dtype=torch.uint8)
    found = Transform(TransformOptions())(tile)
    mean, std = STATISTICS["imagenet"]
    assert found.shape == (1, 3, 224, 224)
    assert found.dtype == torch.float32
    for channel in range(3):
        expected = (0.2 - mean[channel]) / std[channel]
        torch.testing.assert_close(found[0, channel], torch.full((224, 224), expected))


def test_crop_takes_the_middle():
    tile = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    found = Transform(TransformOptions(resize=None, crop=4, normalise="none"))(tile)
    torch.testing.assert_close(found[0, 0] * 255, tile[0, 0, 2:6, 2:6].float())


def test_own_statistics_win():
    options = TransformOptions(resize=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25))
    found = Transform(options)(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert found[0, :, 0, 0].tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "mine"}, "normalise: 'mine' is unknown"),
        ({"resize": 0}, "resize: must be at least 1"),
        ({"resize": 200, "crop": 224}, "crop: 224 is more than resize leaves"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean, std: give both"),
        ({"interpolation": "lanczos"}, "interpolation: 'lanczos'"),
    ],
)
def test_wrong_options_of_the_transform(options, message):
    with pytest.raises(ConfigError, match=message):
        TransformOptions(**options)


def test_crop_of_tiles_too_small():
    with pytest.raises(ConfigError, match="crop: 224 does not fit into tiles of 48 x 48"):
        Transform(TransformOptions(resize=None, crop=224))(torch.zeros(1, 3, 48, 48))


def test_function_of_the_user(own, tiles):
    encoder = open_encoder("own_encoder:small", tile_size=48)
    assert encoder.feature_dim == 4
    assert not encoder.module.training
    pixels = Transform(TransformOptions())(tiles.permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder.encode(tiles), encoder.module(pixels).flatten(1))
    # In evaluation mode a tile knows nothing of its batch.
    torch.testing.assert_close(encoder.encode(tiles[:1]), encoder.encode(tiles)[:1])


def test_a_transform_of_the_user_wins(own, tiles):
    encoder = open_encoder("own_encoder:scaled", tile_size=48)
    pixels = tiles.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(encoder.encode(tiles), encoder.module(pixels).flatten(1))


def test_reduced_precision_is_close(own, tiles):
    encoder = open_encoder("own_encoder:small", tile_size=48)
    found = encoder.encode(tiles, dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, encoder.encode(tiles), rtol=0.02, atol=0.02)
    assert not torch.equal(found, encoder.encode(tiles))


def test_weight_files_give_the_same_features(own, tiles):
    from own_encoder import small

    module = small().eval()
    state = module.state_dict()
    torch.save(state, own / "plain.pth")
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, own / "wrapped.pt")
    _save_torchscript(module, own / "compiled.pt")
    direct = open_encoder("own_encoder:small", tile_size=48)
    for name, builder in (("plain.pth", True), ("wrapped.pt", True), ("compiled.pt", False)):
        loaded = open_encoder(
            str(own / name), "own_encoder:small" if builder else None, tile_size=48
        )
        torch.testing.assert_close(loaded.encode(tiles), direct.encode(tiles))
        assert loaded.weights_sha256 == direct.weights_sha256
        assert loaded.name == name.partition(".")[0]


def _save_torchscript(module: nn.Module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(module, torch.zeros(1, 3, 224, 224)).save(path)


def test_the_hash_knows_every_weight(own):
    first = open_encoder("own_encoder:small", tile_size=48)
    first.module[0].bias.data[2] += 1e-6
    assert hash_weights(first.module) != first.weights_sha256


class Intruder:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_pickle_is_not_executed(own):
    torch.save({"state_dict": {}, "other": Intruder()}, own / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt holds more than weights"):
        open_encoder(str(own / "evil.pt"), "own_encoder:small")


@pytest.mark.parametrize(
    ("name", "builder", "message"),
    [
        ("resnet18", None, "encoder: 'resnet18' is unknown"),
        ("nowhere:small", None, "encoder: cannot import nowhere:small"),
        ("own_encoder:absent", None, "encoder: cannot import own_encoder:absent"),
        ("own_encoder:number", None, "own_encoder:number returns int"),
        ("own_encoder:demanding", None, r"own_encoder:demanding\(\) fails \(TypeError"),
        ("own_encoder:maps", None, r"returns \(2, 4, 222, 222\) for 2 tiles"),
        ("own_encoder:small", "own_encoder:small", "builder: belongs to a weight file"),
        ("absent.pt", None, "encoder: no file absent.pt"),
    ],
)
def test_mistakes_are_one_line(own, name, builder, message):
    with pytest.raises((ConfigError, WeightsError), match=message) as caught:
        open_encoder(name, builder)
    assert "\n" not in str(caught.value)


def test_weight_files_that_do_not_fit(own):
    torch.save({"other.weight": torch.zeros(2)}, own / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt lacks 0\.bias and 6 more"):
        open_encoder(str(own / "other.pt"), "own_encoder:small")
    with pytest.raises(ConfigError, match=r"other\.pt holds weights only; pass --builder"):
        open_encoder(str(own / "other.pt"))
    (own / "cut.pt").write_bytes((own / "other.pt").read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"cut\.pt is damaged"):
        open_encoder(str(own / "cut.pt"), "own_encoder:small")
    (own / "cut.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"cut\.safetensors is damaged"):
        open_encoder(str(own / "cut.safetensors"), "own_encoder:small")
