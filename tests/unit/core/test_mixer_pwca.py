"""`pwca`: a training branch around an ordinary layer."""

import pytest
import torch
from torch import Tensor

from manyhead_core.attention.biases import Alibi
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixers.moh import MixtureOfHeads
from manyhead_core.attention.mixers.pwca import (
    PairwiseCrossAttention,
    UncertaintyWeights,
    pair_order,
)
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.errors import ConfigError


def layer(kind: type[Attention] = Attention) -> Attention:
    torch.manual_seed(0)
    made = kind(8, 2).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def tokens(batch: int = 3, count: int = 5, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Attention, MixtureOfHeads])
def test_pwca_of_a_sample_with_itself_is_self_attention(kind: type[Attention]) -> None:
    made, x, branch = layer(kind), tokens(), PairwiseCrossAttention()
    torch.testing.assert_close(branch(made, x, x).y, made(x).y)


def test_pwca_in_float32_is_as_close_as_asked() -> None:
    made, x = layer().float(), tokens().float()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pair, own = PairwiseCrossAttention()(made, x, x).y, made(x).y
    torch.testing.assert_close(pair, own, atol=5e-7, rtol=0)


def test_pwca_shares_one_softmax_over_both_samples() -> None:
    made, x, pair = layer(), tokens(), tokens(count=4, seed=2)
    found = PairwiseCrossAttention()(made, x, pair).y
    torch.testing.assert_close(found, made(x, torch.cat([x, pair], 1)).y)


def test_pwca_takes_another_sample_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, branch = layer(), tokens(), PairwiseCrossAttention()
    torch.manual_seed(3)
    found = branch(made, x).y
    torch.manual_seed(3)
    torch.testing.assert_close(found, branch(made, x, x[pair_order(3)]).y)


def test_pairs_are_a_permutation_without_fixed_points() -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        order = pair_order(4)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        assert not (order == torch.arange(4)).any()
        seen.add(tuple(order.tolist()))
    assert len(seen) == 6
    assert pair_order(1).tolist() == [0]


def test_pwca_in_evaluation_is_the_layer_whatever_the_pair() -> None:
    made, x, branch = layer(), tokens(), PairwiseCrossAttention().eval()
    torch.testing.assert_close(branch(made, x, tokens(seed=2)).y, made(x).y)
    torch.testing.assert_close(branch(made, x).y, made(x).y)
    assert not list(branch.state_dict())


def test_pwca_gradients_reach_the_weights_of_the_layer() -> None:
    made, x = layer(), tokens()
    PairwiseCrossAttention()(made, x).y.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_masked_tokens_change_nothing() -> None:
    made, x, pair, branch = layer(), tokens(), tokens(seed=2), PairwiseCrossAttention()
    wide, wide_pair = (
        torch.cat([t, 1e3 * torch.ones(3, 2, 8, dtype=t.dtype)], 1) for t in (x, pair)
    )
    mask = KeyPadding(torch.tensor([5, 5, 5]))
    found = branch(made, wide, wide_pair, mask=mask, pair_mask=mask).y
    torch.testing.assert_close(found[:, :5], branch(made, x, pair).y)


def test_random_pairs_bring_their_mask() -> None:
    made, x, branch = layer(), tokens(), PairwiseCrossAttention()
    lengths = torch.tensor([2, 5, 3])
    torch.manual_seed(4)
    found = branch(made, x, mask=KeyPadding(lengths)).y
    torch.manual_seed(4)
    order = pair_order(3).tolist()
    for b, other in enumerate(order):
        own, foreign = x[b : b + 1, : lengths[b]], x[other : other + 1, : lengths[other]]
        expected = made(own, torch.cat([own, foreign], 1)).y
        torch.testing.assert_close(found[b : b + 1, : lengths[b]], expected)


def test_causal_queries_see_the_whole_pair_and_their_own_past() -> None:
    made, x, pair = layer(), tokens(), tokens(count=4, seed=2)
    found = PairwiseCrossAttention()(made, x, pair, mask=Causal()).y
    expected = made(x[:, :3], torch.cat([x[:, :3], pair], 1)).y
    torch.testing.assert_close(found[:, 2], expected[:, 2])


def test_a_sample_without_tokens_sees_no_pair_and_has_finite_gradients() -> None:
    made, x = layer(), tokens().requires_grad_()
    y = PairwiseCrossAttention()(made, x, mask=KeyPadding(torch.tensor([0, 5, 4]))).y
    torch.testing.assert_close(y[0], made.proj.bias.expand(5, 8))
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[0].any()


def test_one_token_of_one_sample() -> None:
    made, x = layer(), tokens(1, 1)
    torch.testing.assert_close(PairwiseCrossAttention()(made, x).y, made(x).y)


def test_wrong_pairs_are_refused() -> None:
    branch, x = PairwiseCrossAttention(), tokens()
    with pytest.raises(ConfigError, match="has no pair"):
        branch(layer(), x, pair_mask=Causal())
    with pytest.raises(ConfigError, match="bias=None"):
        branch(Attention(8, 2, bias=Alibi(torch.ones(2))).double(), x)


def test_uncertainty_weights_are_the_formula() -> None:
    weights = UncertaintyWeights(["self", "local", "pair"]).double()
    losses = {name: torch.tensor(value).double() for name, value in (("self", 2.0), ("pair", 3.0))}
    assert weights(losses).item() == pytest.approx(2.5)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.5, 9.0, -1.0]))
    expected = 0.5 * (2 * torch.tensor(-0.5).exp() + 0.5 + 3 * torch.tensor(1.0).exp() - 1)
    assert weights(losses).item() == pytest.approx(float(expected))


def test_uncertainty_weights_settle_at_the_logarithm_of_the_loss() -> None:
    weights = UncertaintyWeights(["a", "b"]).double()
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([2.0, 5.0]).log())
    losses = {"a": torch.tensor(2.0).double(), "b": torch.tensor(5.0).double()}
    weights(losses).backward()
    torch.testing.assert_close(
        weights.log_variances.grad, torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"known are \['a'\]"):
        UncertaintyWeights(["a"])({"b": torch.tensor(1.0)})
    with pytest.raises(ConfigError, match="losses: got"):
        UncertaintyWeights(["a"])({})
    with pytest.raises(ConfigError, match="names"):
        UncertaintyWeights(["a", "a"])
