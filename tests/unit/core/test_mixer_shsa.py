"""`shsa`: against plain loops, fused convolutions, and the case of all channels."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from manyhead_core.attention import MapRequest, attend
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.shsa import ConvNorm, SingleHeadAttention
from manyhead_core.errors import ConfigError

PARITY = Path(__file__).parents[2] / "parity"


def mixer(dim: int = 10, part: int | None = 4, qk: int = 3) -> SingleHeadAttention:
    torch.manual_seed(0)
    made = SingleHeadAttention(dim, partial_dim=part, qk_dim=qk).double()
    for name, tensor in made.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point():
            tensor.normal_(0.0, 0.5)
    return made.eval()


def image(height: int, width: int, dim: int = 10, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, height * width, dim, generator=generator, dtype=torch.float64)


def conv_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Of one token."""
    weight = state[f"{name}.c.weight"][:, :, 0, 0]
    out = torch.stack([(row * x).sum() for row in weight])
    norm = {key: state[f"{name}.bn.{key}"] for key in ("weight", "bias")}
    mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    return (out - mean) / (variance + 1e-5).sqrt() * norm["weight"] + norm["bias"]


def formula(x: Tensor, state: dict[str, Tensor], part: int, qk: int) -> Tensor:
    """One image, `(tokens, dim)`, token by token."""
    normed = x[:, :part]
    centred = normed - normed.mean()
    normed = centred / (centred.square().mean() + 1e-5).sqrt()
    normed = normed * state["pre_norm.weight"] + state["pre_norm.bias"]
    mixed = torch.stack([conv_norm(token, state, "qkv") for token in normed])
    rows = []
    for n in range(len(x)):
        scores = torch.stack([(mixed[n, :qk] * other[qk : 2 * qk]).sum() for other in mixed])
        weights = (scores / qk**0.5).softmax(0)
        out = sum(w * other[2 * qk :] for w, other in zip(weights, mixed, strict=True))
        rows.append(conv_norm(torch.cat((out, x[n, part:])).clamp(min=0), state, "proj.1"))
    return torch.stack(rows)


@pytest.mark.parametrize("grid", [(3, 4), (1, 1), (5, 3)])
def test_is_the_formula(grid: tuple[int, int]) -> None:
    made, x = mixer(), image(*grid)
    y = made(x, grid=grid).y
    for found, one in zip(y, x, strict=True):
        torch.testing.assert_close(found, formula(one, made.state_dict(), 4, 3))


def test_all_channels_and_neutral_norms_are_one_headed_attention() -> None:
    made, x = mixer(6, 6, 6), image(3, 4, 6)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()
            module.eps = 0.0
    state = made.state_dict()
    normed = made.pre_norm(x.transpose(1, 2)).transpose(1, 2)
    parts = (normed @ state["qkv.c.weight"][:, :, 0, 0].T).split(6, -1)
    out = attend(*(part[:, None] for part in parts)).out[:, 0]
    expected = out.relu() @ state["proj.1.c.weight"][:, :, 0, 0].T
    torch.testing.assert_close(made(x, grid=(3, 4)).y, expected)


def test_convolutions_and_norms_fuse_exactly() -> None:
    made, x = mixer(), image(3, 5)
    before = made(x, grid=(3, 5)).y
    after = made.fuse()(x, grid=(3, 5)).y
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)
    assert not any(isinstance(m, ConvNorm | torch.nn.BatchNorm2d) for m in made.modules())
    made.fuse()


def test_fuse_while_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="eval"):
        mixer().train().fuse()


def test_starts_as_nothing_added_to_a_residual() -> None:
    assert SingleHeadAttention(16)(torch.randn(2, 9, 16), grid=(3, 3)).y.abs().max() == 0


def test_maps_are_those_of_the_head() -> None:
    made, x = mixer(), image(3, 4)
    maps = made(x, grid=(3, 4), maps=MapRequest()).maps
    assert maps.shape == (2, 1, 12, 12)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 1, 12))


def test_gradients_reach_every_weight() -> None:
    made = mixer().train()
    made(image(3, 5), grid=(3, 5)).y.pow(3).sum().backward()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_undeclared_uses_and_impossible_parts_are_refused() -> None:
    made, x = mixer(), image(2, 2)
    with pytest.raises(UnsupportedPattern):
        made(x, x, grid=(2, 2))
    with pytest.raises(UnsupportedPattern):
        made(x, grid=(2, 2), mask=Causal())
    with pytest.raises(UnsupportedPattern):
        made(x, grid=(2, 2), mask=KeyPadding(torch.tensor([3, 4])))
    with pytest.raises(ConfigError, match="partial_dim"):
        SingleHeadAttention(8, partial_dim=9)


def test_replays_a_reference_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = (3, 2)
    made, x = mixer(), image(*grid)
    state = {k: v.requires_grad_(v.is_floating_point()) for k, v in made.state_dict().items()}
    y = torch.stack([formula(one, state, 4, 3) for one in x])
    target = torch.ones_like(y)
    loss = (y - target).square().mean()
    names = ["qkv.c.weight", "proj.1.bn.weight", "pre_norm.bias"]
    gradients = torch.autograd.grad(loss, [state[name] for name in names])

    def channel_first(tokens: Tensor) -> Tensor:
        return tokens.detach().transpose(1, 2).unflatten(2, grid)

    groups = {
        "input/x": channel_first(x),
        "input/target": channel_first(target),
        "output/y": channel_first(y),
        "output/loss": loss.detach(),
    }
    groups |= {f"grad/{name}": found for name, found in zip(names, gradients, strict=True)}
    groups |= {f"weights/{k}": v.detach() for k, v in state.items() if v.is_floating_point()}
    header = {"case": "shsa", "dim": 10, "partial_dim": 4, "qk_dim": 3, "layout": "NCHW"}
    header |= {"height": grid[0], "width": grid[1]}
    file = tmp_path / "shsa.safetensors"
    tensors = {name: tensor.float().contiguous() for name, tensor in groups.items()}
    save_file(tensors, file, {"config": json.dumps(header)})
    monkeypatch.syspath_prepend(str(PARITY))
    replay = import_module("core_shsa").MECHANISMS["shsa"]
    replay(import_module("comparison").Reference(file))
