"""FlexAttention against the formula, and what it cannot do.

On CPU it runs uncompiled here; `-m slow` compiles one call and `-m gpu` the rest.
"""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manyhead_core.attention import biases, masks
from manyhead_core.attention import flex as flex_module
from manyhead_core.attention.biases import ScoreMod
from manyhead_core.attention.flex import clear_block_masks, flex, unable
from manyhead_core.attention.masks import Mask, Shape
from manyhead_core.errors import ConfigError

GRID = (3, 4)
FLAGS = torch.tensor([[True] * 7 + [False] * 5, [False] * 12])
IDS = torch.tensor([[0] * 4 + [1] * 8, [2, 3, 4] * 4])
RANDOM = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(1)) > 0.5

MASKS: dict[str, Mask] = {
    "causal": masks.Causal(),
    "window": masks.SlidingWindow(2, 1),
    "flags": masks.KeyPadding(FLAGS),
    "lengths": masks.KeyPadding(torch.tensor([5, 0])),
    "grid_clip": masks.Window2D(GRID, 3),
    "grid_shift": masks.Window2D(GRID, 3, boundary="shift"),
    "same": masks.SameId(IDS),
    "other": masks.NotId(IDS[0]),
    "prefix": masks.Prefix(3),
    "dense": masks.Dense(RANDOM),
    "nothing": masks.Dense(torch.tensor(False)),
    "both": masks.Causal() & masks.KeyPadding(FLAGS),
    "either": masks.SlidingWindow(1, 1) | masks.Prefix(2) & masks.SameId(IDS),
}
BIASES: dict[str, Callable[[], biases.Bias]] = {
    "dense": lambda: biases.Dense(torch.randn(2, 1, 12, 12)),
    "keys": lambda: biases.KeyBias(torch.randn(2, 4, 12)),
    "alibi": lambda: biases.Alibi(biases.alibi_slopes(4)),
    "line": lambda: biases.RelPos1D(torch.randn(24, 4)),
    "grid": lambda: biases.RelPos2D(torch.randn(35, 4), GRID),
    "network": lambda: biases.MLPBias(4, 4, grid=GRID),
    "continuous": lambda: biases.ContinuousBias(4, GRID, hidden=4),
    "sum": lambda: biases.RelPos1D(torch.randn(24, 1)) + biases.Alibi(torch.rand(4)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    clear_block_masks()


def tensors(
    queries: int = 12, keys: int = 12, heads: int = 4, key_heads: int = 4, value_dim: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(2, heads, queries, 16),
        torch.randn(2, key_heads, keys, 16),
        torch.randn(2, key_heads, keys, value_dim),
    )


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask | None = None,
    bias: biases.Bias | None = None,
    score_mod: ScoreMod | None = None,
    scale: float = 0.25,
) -> tuple[Tensor, Tensor]:
    shape = Shape.of(query, key)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1).float() for x in (key, value))
    scores = scale * query.float() @ key.mT
    if bias is not None:
        scores = scores + bias.dense(shape)
    if score_mod is not None:
        index = torch.meshgrid(
            *(torch.arange(n, device=query.device) for n in scores.shape), indexing="ij"
        )
        scores = score_mod(scores, *index)
    if mask is not None:
        scores = scores.masked_fill(~mask.dense(shape), float("-inf"))
    blind = scores.amax(-1, keepdim=True) == float("-inf")
    weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return weights @ value, scores.logsumexp(-1)


def assert_agrees(*inputs: Tensor, **options: object) -> None:
    with torch.no_grad():
        found, lse = flex(*inputs, **options)
        expected, _ = formula(*inputs, **options)
    assert lse is None
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", sorted(MASKS))
def test_flex_agrees_under_every_mask(name: str) -> None:
    assert_agrees(*tensors(), mask=MASKS[name])


@pytest.mark.parametrize("name", sorted(BIASES))
def test_flex_agrees_under_every_bias(name: str) -> None:
    assert_agrees(*tensors(), bias=BIASES[name](), mask=MASKS["both"])


def test_flex_applies_a_score_mod_after_the_bias() -> None:
    def cap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return 2 * torch.tanh(score / 2) + 0.1 * h - 0.2 * b + 0.01 * (q - k)

    assert_agrees(*tensors(), bias=BIASES["line"](), score_mod=cap, scale=0.7)


@pytest.mark.parametrize(("queries", "keys"), [(1, 12), (5, 9), (9, 5), (1, 1)])
def test_flex_agrees_for_other_numbers_of_keys_than_queries(queries: int, keys: int) -> None:
    for mask in (masks.Causal(), masks.SlidingWindow(3, 0, "upper_left")):
        assert_agrees(*tensors(queries, keys), mask=mask, bias=biases.Alibi(torch.rand(4)))


def test_flex_shares_key_heads_and_takes_values_of_another_width() -> None:
    per_head = masks.Dense(torch.rand(4, 12, 12) > 0.4)
    assert_agrees(*tensors(key_heads=2, value_dim=24), mask=per_head, bias=BIASES["keys"]())


def test_flex_takes_tensors_as_mask_and_bias() -> None:
    inputs, bias = tensors(), torch.randn(4, 1, 12)
    with torch.no_grad():
        found, _ = flex(*inputs, mask=RANDOM, bias=bias)
    expected, _ = formula(*inputs, mask=masks.Dense(RANDOM), bias=biases.Dense(bias))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_flex_gives_zeros_where_nothing_is_visible() -> None:
    with torch.no_grad():
        out, _ = flex(*tensors(), mask=MASKS["lengths"])
        hidden, _ = flex(*tensors(), bias=torch.full((12, 1), float("-inf")))
    assert not out[1].any()
    assert out[0].any()
    assert not hidden.any()


def test_flex_takes_16_bits_and_gives_those_of_the_values() -> None:
    inputs = tensors()
    with torch.no_grad():
        out, _ = flex(*(x.bfloat16() for x in inputs), mask=MASKS["causal"])
    assert out.dtype == torch.bfloat16
    rounded = [x.bfloat16().float() for x in inputs]
    expected, _ = formula(*rounded, mask=MASKS["causal"])
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


def built(monkeypatch: pytest.MonkeyPatch) -> list[Mask]:
    """Masks whose block structure is computed from now on."""
    found: list[Mask] = []
    build = flex_module._build

    def spy(mask: Mask, shape: Shape) -> object:
        found.append(mask)
        return build(mask, shape)

    monkeypatch.setattr(flex_module, "_build", spy)
    return found


def test_flex_computes_the_blocks_of_a_mask_once_for_each_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = built(monkeypatch)
    padding = masks.KeyPadding(FLAGS.clone())
    with torch.no_grad():
        for _ in range(2):
            flex(*tensors(), mask=masks.SlidingWindow(1, 1) & padding)
        assert len(found) == 1
        flex(*tensors(keys=9, queries=9), mask=masks.SlidingWindow(1, 1))
        flex(*tensors(), mask=masks.SlidingWindow(2, 1) & padding)
        assert len(found) == 3
        for _ in range(2):
            flex(*tensors(), mask=RANDOM)
        assert len(found) == 5


def test_flex_sees_a_mask_that_was_changed_in_place() -> None:
    inputs = tensors()
    flags = FLAGS.clone()
    padding = masks.KeyPadding(flags)
    for _ in range(2):
        assert_agrees(*inputs, mask=padding)
        flags[:, :3] = False
        flags[:, 9:] = True
    with torch.inference_mode():
        own = masks.KeyPadding(FLAGS.clone())
        assert flex_module._versions(own) is None


def test_flex_keeps_a_bounded_number_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_module, "CACHED_MASKS", 2)
    shape = Shape.of(*tensors()[:2])
    for left in range(4):
        flex_module._block_mask(masks.SlidingWindow(left, 0), shape)
    assert [name[0].left for name in flex_module._kept] == [2, 3]


def test_flex_runs_without_gradients_on_leaves_that_learn() -> None:
    query, key, value = (x.requires_grad_() for x in tensors())
    with torch.no_grad():
        out, _ = flex(query, key, value, bias=BIASES["line"]())
    assert not out.requires_grad


def test_flex_leaves_gradients_of_a_score_mod_alone() -> None:
    table = torch.randn(4, requires_grad=True)
    out, _ = flex(*tensors(), score_mod=lambda s, b, h, q, k: s * table[h])
    out.square().sum().backward()
    assert table.grad.all()


LIMITS = {
    "has no dropout": {"dropout_p": 0.1},
    "returns no lse on CPU": {"return_lse": True},
    "has no gradients on CPU": {"learns": True},
    "takes float32, bfloat16 and float16 only": {"dtype": torch.float64},
    "needs at least one query and one key": {"keys": 0},
    "needs heads of width 16 or more": {"width": 8},
    "runs on CPU and CUDA only": {"device": "meta"},
}


@pytest.mark.parametrize("reason", LIMITS)
def test_flex_names_its_limit(reason: str) -> None:
    case = dict(LIMITS[reason])
    query, key, value = tensors()
    options = {"device": case.pop("device", "cpu"), "dtype": case.pop("dtype", torch.float32)}
    query, key, value = (x.to(**options) for x in (query, key, value))
    width = case.pop("width", 16)
    query, key = query[..., :width], key[..., :width]
    keys = case.pop("keys", 12)
    key, value = key[:, :, :keys], value[:, :, :keys]
    query.requires_grad_(case.pop("learns", False))
    assert unable(query, key, value, **case) == reason
    case.pop("dropout_p", None)
    if reason != "has no dropout":
        with pytest.raises(ConfigError, match=f"backend: flex {reason}; use auto or eager"):
            flex(query, key, value, **case)


def test_flex_refuses_a_bias_that_learns_on_cpu_but_not_one_that_is_fixed() -> None:
    learned = biases.RelPos1D(torch.randn(24, 4, requires_grad=True))
    assert unable(*tensors(), bias=learned) == "has no gradients on CPU"
    assert unable(*tensors(), bias=learned.values) == "has no gradients on CPU"
    assert unable(*tensors(), bias=BIASES["line"]()) is None
    with torch.no_grad():
        assert unable(*tensors(), bias=learned) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_compiled_flex_agrees_on_cpu() -> None:
    grid = (12, 12)
    inputs = tensors(144, 144, key_heads=2)
    ids = torch.randint(0, 3, (2, 144))
    near = masks.Window2D(grid, 5, 2, "shift") & masks.SameId(ids)
    far = masks.Prefix(7) & masks.NotId(ids) & masks.Causal() | masks.SlidingWindow(40, 2)
    mask = (near | far) & masks.KeyPadding(torch.tensor([100, 0]))
    mask = mask | masks.Dense(torch.rand(144, 1) > 0.9)
    bias = biases.MLPBias(4, 4) + biases.ContinuousBias(4, grid, hidden=4)
    bias = bias + biases.KeyBias(torch.randn(2, 1, 144)) + biases.RelPos1D(torch.randn(288, 4))
    with torch.no_grad():
        found, _ = flex(*inputs, mask=mask, bias=bias, compiled=True)
        expected, _ = formula(*inputs, mask=mask, bias=bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def on_gpu(*inputs: Tensor) -> list[Tensor]:
    return [x.cuda().requires_grad_() for x in inputs]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(MASKS))
def test_flex_agrees_on_cuda_with_gradients_and_lse(name: str) -> None:
    ours, theirs = (on_gpu(*tensors(key_heads=2)) for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        other.data = one.data.clone()
    table = torch.randn(24, 4, device="cuda")
    found = flex_with_table(ours, table.clone().requires_grad_(), MASKS[name])
    expected = flex_with_table(theirs, table.clone().requires_grad_(), MASKS[name], plain=True)
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def flex_with_table(
    inputs: list[Tensor], table: Tensor, mask: Mask, *, plain: bool = False
) -> list[Tensor]:
    """Output, lse, and the gradients of inputs and of a table that is read twice."""
    bias = biases.RelPos1D(table) + biases.RelPos1D(table)
    if plain:
        out, lse = formula(*inputs, mask=mask, bias=bias)
    else:
        out, lse = flex(*inputs, mask=mask, bias=bias, return_lse=True)
    out.square().sum().backward()
    return [out, lse, *(x.grad for x in (*inputs, table))]


@pytest.mark.gpu
def test_flex_names_bias_gradients_under_deterministic_algorithms() -> None:
    bias = biases.Dense(torch.zeros(12, 12, device="cuda", requires_grad=True))
    torch.use_deterministic_algorithms(True)
    try:
        reason = unable(*(x.cuda() for x in tensors()), bias=bias)
    finally:
        torch.use_deterministic_algorithms(False)
    assert reason is not None
    assert "deterministic algorithms are on" in reason
