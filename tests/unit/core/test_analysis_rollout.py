"""Maps, gradients and rollout read from a model: known answers and finite differences."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyhead_core.analysis.rollout import read_gradients, read_maps, roll, row_of, token_rollout
from manyhead_core.analysis.run import Study
from manyhead_core.attention.capture import edit_weights
from manyhead_core.attention.mixers.ablations import LinearQueryKey, Uniform
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


class Host(nn.Module):
    """Residual layers and a mean."""

    def __init__(self, *mixers: nn.Module, dim: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mixers)
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).y
        return self.head(x.mean(1))


def host(kind: type[nn.Module] = Attention, count: int = 2) -> Host:
    torch.manual_seed(0)
    model = Host(*(kind(8, 2) for _ in range(count)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    return model.double()


def batches(tokens: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, tokens, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def study(model: nn.Module, data: list[Tensor] | None = None) -> Study:
    return Study(model, model, batches() if data is None else data)


def test_rollout_of_uniform_attention_is_known() -> None:
    for count in (1, 2, 3):
        found = roll(read_maps(study(host(Uniform, count)), batches()[0]))
        own = 0.5**count
        expected = own * torch.eye(5) + (1 - own) / 5
        torch.testing.assert_close(found.float(), expected.expand(2, 5, 5))


@pytest.mark.parametrize("gradient", [False, True])
def test_rollout_rows_sum_to_one(gradient: bool) -> None:
    task, batch = study(host()), batches()[0]
    reading = read_gradients(task, batch) if gradient else read_maps(task, batch)
    found = roll(reading)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    for row in token_rollout(task, gradient=gradient):
        assert row.shape == (5,)
        assert row.sum() == pytest.approx(1)


def test_rollout_reads_the_row_of_a_query() -> None:
    task = study(host())
    whole = roll(read_maps(task, task.batches[1]))
    np.testing.assert_allclose(token_rollout(task, query=2)[3], whole[1, 2].numpy())
    np.testing.assert_allclose(token_rollout(task)[3], whole[1].mean(0).numpy())
    assert row_of(whole, 0).shape == (2, 5)


def test_rollout_follows_a_layer_subset_and_lengths() -> None:
    data = [batches(4)[0], batches(7)[0]]
    found = token_rollout(study(host(), data), layers=[1])
    assert [len(row) for row in found] == [4, 4, 7, 7]


def test_read_gradients_are_finite_differences() -> None:
    model, batch = host(), batches()[0]
    target = torch.tensor([2, 0])
    found = read_gradients(study(model), batch, target=target)
    assert found.layers == [0, 1]
    assert found.gradients is not None
    for layer, name in enumerate(["layers.0.attend", "layers.1.attend"]):
        step = torch.zeros_like(found.maps[layer])
        step[1, 1, 3, 2] = 1e-6

        def logit(sign: float, name: str = name, step: Tensor = step) -> float:
            with torch.no_grad(), edit_weights(model, {name: lambda w: w + sign * step}):
                return float(model(batch)[1, 0])

        slope = (logit(1) - logit(-1)) / 2e-6
        assert float(found.gradients[layer][1, 1, 3, 2]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_read_gradients_agree_with_plain_maps_and_leave_nothing_behind() -> None:
    model, batch = host(), batches()[0]
    model.train()
    before = model(batch)
    plain, found = read_maps(study(model), batch), read_gradients(study(model), batch)
    for one, other in zip(plain.maps, found.maps, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype))
    assert torch.equal(model(batch), before)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_layers_without_softmax_weights_are_left_out_of_gradients() -> None:
    torch.manual_seed(0)
    mixed = Host(LinearQueryKey(8, 2), Attention(8, 2)).double()
    assert read_gradients(study(mixed), batches()[0]).layers == [1]
    with pytest.raises(ConfigError, match="none of them has softmax weights"):
        read_gradients(study(mixed), batches()[0], layers=[0])
