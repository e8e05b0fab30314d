"""`ulsam`: against plain loops, and what holds for every map."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.ulsam import SubspaceAttention
from manyhead_core.errors import ConfigError

PARITY = Path(__file__).parents[2] / "parity"


def mixer(dim: int = 6, groups: int = 2) -> SubspaceAttention:
    torch.manual_seed(0)
    made = SubspaceAttention(dim, groups).double()
    for name, tensor in made.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point():
            tensor.normal_(0.2, 0.7)
    return made.eval()


def image(height: int, width: int, dim: int = 6, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, height * width, dim, generator=generator, dtype=torch.float64)


def normed(x: Tensor, state: dict[str, Tensor], name: str, train: bool) -> Tensor:
    """Batch norm of `(batch, channels, height, width)`, channel by channel."""
    rows = []
    for c in range(x.shape[1]):
        mean, variance = state[f"{name}.running_mean"][c], state[f"{name}.running_var"][c]
        if train:
            mean, variance = x[:, c].mean(), x[:, c].var(correction=0)
        unit = (x[:, c] - mean) / (variance + 1e-5).sqrt()
        rows.append(unit * state[f"{name}.weight"][c] + state[f"{name}.bias"][c])
    return torch.stack(rows, 1)


def formula(x: Tensor, state: dict[str, Tensor], groups: int, train: bool) -> Tensor:
    """`(batch, channels, height, width)`, position by position."""
    batch, dim, height, width = x.shape
    out = []
    for g, part in enumerate(x.split(dim // groups, 1)):
        name = f"subspaces.{g}"
        weight, bias = state[f"{name}.conv_dws.weight"], state[f"{name}.conv_dws.bias"]
        hidden = part * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
        hidden = normed(hidden, state, f"{name}.bn_dws", train).clamp(min=0)
        point = state[f"{name}.conv_point.weight"].view(-1)
        score = torch.zeros(batch, 1, height, width, dtype=x.dtype)
        for i in range(height):
            for j in range(width):
                near = hidden[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].amax((2, 3))
                score[:, 0, i, j] = near @ point + state[f"{name}.conv_point.bias"]
        score = normed(score, state, f"{name}.bn_point", train).clamp(min=0).exp()
        out.append(part * (score / score.sum((2, 3), keepdim=True)) + part)
    return torch.cat(out, 1)


def channel_first(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("grid", [(3, 4), (1, 1), (5, 3)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_is_the_formula(grid: tuple[int, int], groups: int) -> None:
    made, x = mixer(groups=groups), image(*grid)
    expected = formula(channel_first(x, grid), made.state_dict(), groups, False)
    torch.testing.assert_close(channel_first(made(x, grid=grid).y, grid), expected)


def test_maps_sum_to_one() -> None:
    weights = mixer().weights(image(3, 5), (3, 5))
    assert weights.shape == (3, 2, 15)
    ones = torch.ones(3, 2, dtype=torch.float64)
    torch.testing.assert_close(weights.sum(-1), ones)


def test_channels_of_a_group_share_their_factor() -> None:
    made, x = mixer(), image(3, 5)
    factor = (made(x, grid=(3, 5)).y / x - 1).unflatten(2, (2, 3))
    torch.testing.assert_close(factor, factor[..., :1].expand_as(factor))
    assert not torch.allclose(factor[:, :, 0], factor[:, :, 1])


def test_new_statistics_weigh_nine_tenths() -> None:
    made, x = mixer(groups=6).train(), image(3, 4)
    norm = made.subspaces[0].bn_dws
    before = norm.running_mean.clone()
    made(x, grid=(3, 4))
    hidden = made.subspaces[0].conv_dws(channel_first(x[..., :1], (3, 4)))
    torch.testing.assert_close(norm.running_mean, 0.1 * before + 0.9 * hidden.mean((0, 2, 3)))


def test_gradients_are_finite() -> None:
    made, x = mixer().train(), image(3, 5).requires_grad_()
    made(x, grid=(3, 5)).y.pow(3).sum().backward()
    assert torch.isfinite(x.grad).all()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_undeclared_uses_and_uneven_groups_are_refused() -> None:
    made, x = mixer(), image(2, 2)
    with pytest.raises(UnsupportedPattern):
        made(x, x, grid=(2, 2))
    with pytest.raises(UnsupportedPattern):
        made(x, grid=(2, 2), mask=Causal())
    with pytest.raises(UnsupportedPattern):
        made(x, grid=(2, 2), maps=MapRequest())
    with pytest.raises(ConfigError, match="num_heads=4"):
        SubspaceAttention(6, 4)


@pytest.mark.parametrize("train", [True, False])
def test_replays_a_reference_file(
    train: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = (4, 3)
    state = mixer().state_dict()
    state = {k: v.requires_grad_(v.is_floating_point()) for k, v in state.items()}
    x = channel_first(image(*grid), grid)
    y = formula(x, state, 2, train)
    loss = (y - 1).square().mean()
    names = ["subspaces.0.conv_point.weight", "subspaces.1.bn_dws.weight"]
    gradients = torch.autograd.grad(loss, [state[name] for name in names])
    groups = {"input/x": x, "input/target": torch.ones_like(x)}
    groups |= {"output/y": y.detach(), "output/loss": loss.detach()}
    groups |= {f"grad/{name}": found for name, found in zip(names, gradients, strict=True)}
    groups |= {f"weights/{k}": v.detach() for k, v in state.items() if v.is_floating_point()}
    header = {"case": "ulsam", "dim": 6, "num_splits": 2, "height": 4, "width": 3}
    header |= {"bn_momentum": 0.9, "train": train, "layout": "NCHW"}
    file = tmp_path / "ulsam.safetensors"
    tensors = {name: tensor.float().contiguous() for name, tensor in groups.items()}
    save_file(tensors, file, {"config": json.dumps(header)})
    monkeypatch.syspath_prepend(str(PARITY))
    replay = import_module("core_ulsam").MECHANISMS["ulsam"]
    replay(import_module("comparison").Reference(file))
