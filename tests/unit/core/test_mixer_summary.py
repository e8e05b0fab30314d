"""`summary`: selection, attention within each task, and the stack."""

import pytest
import torch
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.mixers.summary import SummaryAttention, summarise_in_turn
from manyhead_core.errors import ConfigError


def mixer(seed: int = 0, **options) -> SummaryAttention:
    torch.manual_seed(seed)
    made = SummaryAttention(8, 2, **{"num_tasks": 3, "num_selectors": 2, **options}).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def tokens(batch: int = 2, count: int = 5, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, 8, generator=generator, dtype=torch.float64)


def by_task(stream: Tensor) -> Tensor:
    return stream.unflatten(1, (3, 3))


@pytest.mark.parametrize("prefix", [0, 2])
def test_summary_is_the_formula(prefix: int) -> None:
    made, x = mixer(prefix=prefix), tokens()
    found = by_task(made(x).y)
    plain = Attention(8, 2).double()
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if k in plain.state_dict()})
    for task in range(3):
        start, selectors = made.stream[task, :1], made.stream[task, 1:]
        for b in range(2):
            weights = (selectors @ x[b].T / 8**0.5).softmax(-1)
            z = torch.cat([start, weights @ x[b]])[None]
            if not prefix:
                torch.testing.assert_close(found[b, task], (z + plain(z).y)[0])
                continue
            query, key, value = plain.project(z, z)
            key = torch.cat([made.prefix_key[task][None], key], 2)
            value = torch.cat([made.prefix_value[task][None], value], 2)
            out = (query @ key.mT / 2).softmax(-1) @ value
            expected = z + plain.proj(out.transpose(1, 2).flatten(2))
            torch.testing.assert_close(found[b, task], expected[0])


def test_summary_selection_reads_tokens_without_their_gradient() -> None:
    made, x = mixer(), tokens().requires_grad_()
    stream = made.stream.flatten(0, 1).expand(2, -1, -1)
    summaries, weights = made.summarise(stream, x, maps=MapRequest(dtype=x.dtype))
    grown = torch.randn(summaries.shape, generator=torch.Generator().manual_seed(3)).double()
    (gradient,) = torch.autograd.grad((summaries * grown).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, weights[:, 0].mT @ grown.flatten(1, 2))
    (gradient,) = torch.autograd.grad((summaries * grown).sum(), made.stream)
    assert gradient[:, 1:].any()


def test_summary_tasks_do_not_interact() -> None:
    made, x = mixer(prefix=1), tokens()
    before = by_task(made(x).y)
    with torch.no_grad():
        made.stream[1] += 1
        made.prefix_key[1] += 1
    after = by_task(made(x).y)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_summary_order_of_tokens_is_irrelevant() -> None:
    made, x = mixer(), tokens()
    torch.testing.assert_close(made(x.flip(1)).y, made(x).y)


@pytest.mark.parametrize("prefix", [0, 2])
def test_masked_tokens_change_nothing(prefix: int) -> None:
    made, x = mixer(prefix=prefix), tokens()
    padded = torch.cat([x, 1e3 * torch.ones(2, 3, 8, dtype=x.dtype)], 1)
    found = made(padded, mask=KeyPadding(torch.tensor([5, 5]))).y
    torch.testing.assert_close(found, made(x).y)


@pytest.mark.parametrize("prefix", [0, 2])
def test_without_real_tokens_a_task_sees_its_class_token_alone(prefix: int) -> None:
    made, x = mixer(prefix=prefix, residual=False), tokens().requires_grad_()
    y = made(x, mask=KeyPadding(torch.tensor([0, 4]))).y
    if not prefix:
        value = made.project(made.stream, made.stream)[2].transpose(1, 2).flatten(2)
        alone = made.proj(value[:, :1]).expand(-1, 3, -1)
        torch.testing.assert_close(by_task(y)[0], alone)
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[0].any()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_one_token_is_its_own_summary() -> None:
    made, x = mixer(), tokens(count=1)
    stream, _ = made.own_queries(x, None)
    summaries, _ = made.summarise(stream, x)
    torch.testing.assert_close(summaries, x[:, None].expand(2, 3, 2, 8))
    assert torch.isfinite(made(x).y).all()


def test_stack_reappends_the_selectors_unchanged() -> None:
    layers = [mixer(), mixer(1, own_stream=False), mixer(2, own_stream=False)]
    seen = [tokens(seed=4), tokens(seed=5), tokens(count=7, seed=6)]
    stream = layers[0].stream.flatten(0, 1).expand(2, -1, -1)
    for layer, x in zip(layers, seen, strict=True):
        y = layer(stream, x).y
        stream = torch.cat([by_task(y)[:, :, :1], by_task(stream)[:, :, 1:]], 2).flatten(1, 2)
    torch.testing.assert_close(summarise_in_turn(layers, seen), y)
    expected = layers[0].stream[:, 1:].expand(2, -1, -1, -1)
    assert torch.equal(by_task(stream)[:, :, 1:], expected)


def test_stack_on_one_set_of_tokens_selects_from_its_own_output() -> None:
    first, second = mixer(), mixer(1, own_stream=False)
    x = tokens()
    y = by_task(first(x).y)
    found = by_task(summarise_in_turn([first, second], x))
    selectors = first.stream[:, 1:]
    for task in range(3):
        own = y[:, task, 1:]
        weights = (selectors[task] @ own.mT / 8**0.5).softmax(-1)
        z = torch.cat([y[:, task, :1], weights @ own], 1)
        query, key, value = second.project(z, z)
        out = (query @ key.mT / 2).softmax(-1) @ value
        expected = z + second.proj(out.transpose(1, 2).flatten(2))
        torch.testing.assert_close(found[:, task], expected)


def test_stack_passes_gradients_to_every_weight() -> None:
    layers = [mixer(), mixer(1, own_stream=False)]
    summarise_in_turn(layers, tokens(), mask=KeyPadding(torch.tensor([5, 3]))).sum().backward()
    for layer in layers:
        for name, parameter in layer.named_parameters():
            assert parameter.grad.any(), name


def test_maps_stay_within_the_tasks() -> None:
    weights = mixer(prefix=1)(tokens(), maps=MapRequest()).maps
    assert weights.shape == (2, 2, 9, 3 + 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 9))
    for task in range(3):
        own = [task, *range(3 + 3 * task, 6 + 3 * task)]
        kept = weights[:, :, 3 * task : 3 * task + 3, own]
        torch.testing.assert_close(kept.sum(-1), torch.ones(2, 2, 3))


def test_selection_weights_are_there_to_ask_for() -> None:
    made, x = mixer(), tokens()
    stream, _ = made.own_queries(x, None)
    summaries, weights = made.summarise(stream, x, maps=MapRequest(dtype=x.dtype))
    assert weights.shape == (2, 1, 6, 5)
    torch.testing.assert_close(weights[:, 0] @ x, summaries.flatten(1, 2))


@pytest.mark.parametrize("each", [False, True])
def test_a_closed_gate_removes_a_head(each: bool) -> None:
    made, x = mixer(), tokens()
    gate = torch.tensor([1.0, 0.0], dtype=x.dtype)
    gated = made(x, head_gate=gate.expand(2, 2) if each else gate).y
    made.proj.weight.data[:, 4:] = 0
    torch.testing.assert_close(gated, made(x).y)


def test_wrong_streams_and_undeclared_uses_are_refused() -> None:
    made, x = mixer(), tokens()
    with pytest.raises(UnsupportedPattern, match="causal cross-attention"):
        made(x, mask=Causal())
    with pytest.raises(ConfigError, match="a stream of 4 tokens is none of num_tasks=3"):
        made(x[:, :4], x)
    with pytest.raises(ConfigError, match="own_stream=False"):
        mixer(own_stream=False)(x)
    with pytest.raises(ConfigError, match="num_tasks"):
        SummaryAttention(8, 2, num_selectors=0)
    with pytest.raises(ConfigError, match="do not fit"):
        summarise_in_turn([made], [x, x])
