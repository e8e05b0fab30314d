"""`gaam`: the product of Gaussians against plain loops, and what it must not depend on."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.gaam import GaussianAttention, importance_factors
from manyhead_core.errors import ConfigError

PARITY = Path(__file__).parents[2] / "parity"


def mixer(dim: int = 11, heads: int = 3, *, offsets: bool = True, **options) -> GaussianAttention:
    torch.manual_seed(0)
    made = GaussianAttention(dim, heads, num_gaussians=3, **options).double()
    for head in made.attention_heads:
        torch.nn.init.uniform_(head.c, 0.7, 2.0)
        if offsets:
            torch.nn.init.normal_(head.mean_offsets, std=0.5)
    return made


def tokens(batch: int = 2, count: int = 7, dim: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)


def formula(line: Tensor, heads: list[tuple[Tensor, Tensor]], padding: float | None) -> Tensor:
    """Weights of one line: Gaussians multiplied and normalised in linear space."""
    size = len(line) // len(heads)
    weights = []
    for index, (offsets, widths) in enumerate(heads):
        end = len(line) if index == len(heads) - 1 else (index + 1) * size
        chunk = line[index * size : end]
        counted = torch.tensor([0.0 if v == padding else float(v) for v in chunk]).double()
        mean, variance = counted.mean(), counted.var() + 1e-8
        product = []
        for value in chunk:
            density = 1.0
            for offset, width in zip(offsets, widths, strict=True):
                u = (value - mean - offset) / variance.sqrt()
                density = density * torch.exp(-(u**2) / (2 * width**2))
                density = density / (2 * torch.pi * width**2).sqrt()
            product.append(density)
        total = torch.stack(product)
        weights.append(total / total.sum())
    return torch.cat(weights)


def parameters(made: GaussianAttention) -> list[tuple[Tensor, Tensor]]:
    return [(head.mean_offsets.detach(), head.c.detach()) for head in made.attention_heads]


def test_is_the_product_of_gaussians() -> None:
    made, x = mixer(), tokens()
    for b in range(2):
        for n in range(7):
            expected = formula(x[b, n], parameters(made), None)
            torch.testing.assert_close(made.weights(x)[b, n], expected)
    torch.testing.assert_close(made(x).y, x * made.weights(x))


def test_does_not_underflow_where_the_linear_form_does() -> None:
    made = GaussianAttention(8, 1, num_gaussians=4)
    for head in made.attention_heads:
        torch.nn.init.constant_(head.c, 0.01)
        torch.nn.init.constant_(head.mean_offsets, 3.0)
    weights = made.weights(torch.arange(8.0).view(1, 1, 8))
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("axis", ["features", "tokens"])
def test_weights_sum_to_one_in_each_chunk(axis: str) -> None:
    made, x = mixer(axis=axis), tokens(count=8)
    dimension = 2 if axis == "features" else 1
    length = x.shape[dimension]
    size = length // 3
    for part in made.weights(x).split([size, size, length - 2 * size], dimension):
        ones = torch.ones_like(part.sum(dimension))
        torch.testing.assert_close(part.sum(dimension), ones)


def test_without_offsets_affine_maps_change_no_weight() -> None:
    made, x = mixer(offsets=False), tokens()
    torch.testing.assert_close(made.weights(-3 * x + 5), made.weights(x), atol=1e-6, rtol=0)


def test_wide_gaussians_are_uniform() -> None:
    made, x = mixer(12, 3), tokens(dim=12)
    for head in made.attention_heads:
        torch.nn.init.constant_(head.c, 1e8)
    torch.testing.assert_close(made.weights(x), torch.full_like(x, 0.25))


def test_axis_of_tokens_is_that_of_features_transposed() -> None:
    x = tokens(count=11, dim=5)
    along = mixer(5, 3, axis="tokens")
    across = mixer(11, 3)
    across.load_state_dict(along.state_dict())
    torch.testing.assert_close(along(x).y, across(x.transpose(1, 2)).y.transpose(1, 2))


def test_padding_counts_as_zero_and_passes_unchanged() -> None:
    made, x = mixer(padding_value=-1.0), tokens()
    x[:, :, ::4] = -1.0
    torch.testing.assert_close(made.weights(x)[0, 0], formula(x[0, 0], parameters(made), -1.0))
    y = made(x).y
    assert torch.equal(y[:, :, ::4], x[:, :, ::4])
    assert not torch.isclose(y[:, :, 1], x[:, :, 1]).any()


def test_masked_tokens_change_nothing_and_pass_unchanged() -> None:
    made, x = mixer(axis="tokens"), tokens(count=9)
    valid = torch.tensor([True, False, True, True, False, True, True, True, False])
    valid = torch.stack((valid, torch.arange(9) < 7))
    y = made(x, mask=KeyPadding(valid)).y
    for b in range(2):
        alone = made(x[b : b + 1, valid[b]]).y[0]
        torch.testing.assert_close(y[b, valid[b]], alone, atol=1e-6, rtol=0)
        assert torch.equal(y[b, ~valid[b]], x[b, ~valid[b]])


@pytest.mark.parametrize("axis", ["features", "tokens"])
def test_all_masked_passes_through_with_finite_gradients(axis: str) -> None:
    made, x = mixer(axis=axis), tokens(count=6).requires_grad_()
    valid = torch.zeros(2, 6, dtype=torch.bool)
    valid[1, :2] = True
    y = made(x, mask=KeyPadding(valid)).y
    assert torch.equal(y[0], x[0])
    y.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_gradcheck() -> None:
    made, x = mixer(5, 2), tokens(1, 2, 5).requires_grad_()
    names, weights = zip(*made.named_parameters(), strict=True)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(made, given, (x,)).y

    assert torch.autograd.gradcheck(run, (x, *weights))


def test_masked_gradcheck() -> None:
    made, x = mixer(2, 2, axis="tokens"), tokens(2, 6, 2).requires_grad_()
    mask = KeyPadding(torch.tensor([5, 6]))
    assert torch.autograd.gradcheck(lambda x: made(x, mask=mask).y, (x,))


def test_one_token_and_constant_features_are_finite() -> None:
    made = mixer()
    y = made(torch.ones(1, 1, 11, dtype=torch.float64)).y
    assert torch.isfinite(y).all()


def test_importance_is_scaled_to_one() -> None:
    found = importance_factors(torch.tensor([[0.1, 0.5, 0.4], [0.3, 0.5, 0.2]]))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1 / 3]))
    assert torch.isfinite(importance_factors(torch.ones(2, 3))).all()


def test_chunks_without_a_variance_are_refused() -> None:
    with pytest.raises(ConfigError, match="dim=5 in num_heads=3"):
        GaussianAttention(5, 3)
    with pytest.raises(ConfigError, match="tokens=5"):
        mixer(axis="tokens")(tokens(count=5))


def test_undeclared_uses_are_refused() -> None:
    made, x = mixer(), tokens()
    with pytest.raises(UnsupportedPattern):
        made(x, x)
    with pytest.raises(UnsupportedPattern):
        made(x, mask=Causal())


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 9), -1), ((2, 7, 3, 2), 1), ((9,), 0)])
@pytest.mark.parametrize("padding", [None, 0.5])
def test_replays_a_reference_file(
    shape: tuple[int, ...],
    axis: int,
    padding: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = mixer(shape[axis], 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).double()
    x.view(-1)[::5] = 0.5
    lines = x.movedim(axis, -1)
    rows = [formula(row, parameters(made), padding) for row in lines.reshape(-1, shape[axis])]
    weights = torch.stack(rows).view(lines.shape).movedim(-1, axis)
    y = torch.where(x == padding, x, x * weights) if padding is not None else x * weights
    target = torch.zeros_like(x)
    groups = {"input/x": x, "output/y": y, "output/weights": weights}
    groups |= {"input/target": target, "output/loss": y.square().mean()}
    groups |= {f"weights/{name}": tensor for name, tensor in made.state_dict().items()}
    header = {
        "case": "gaam",
        "num_heads": 3,
        "num_gaussians": 3,
        "norm_axis": axis,
        "eps": 1e-3,
        "padding_value": padding,
        "shape": list(shape),
    }
    file = tmp_path / "gaam.safetensors"
    tensors = {name: tensor.float().contiguous() for name, tensor in groups.items()}
    save_file(tensors, file, {"config": json.dumps(header)})
    monkeypatch.syspath_prepend(str(PARITY))
    replay = import_module("core_gaam").MECHANISMS["gaam"]
    replay(import_module("comparison").Reference(file))
