"""Parallel attention: the formula pair by pair, its forms against each other, drops and memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from manyhead_core.attention import MapRequest
from manyhead_core.attention.capture import capture
from manyhead_core.attention.mixers.mvpa import ParallelAttention
from manyhead_core.attention.multivariate.blocks import plan
from manyhead_core.attention.multivariate.choice import choose_form
from manyhead_core.attention.multivariate.eager import attend_eagerly
from manyhead_core.attention.multivariate.flex import UpToOwnStep, attend_by_flex
from manyhead_core.attention.multivariate.fused import attend_fused
from manyhead_core.attention.multivariate.inputs import Dropout, Parts, Rules, check, kept_keys
from manyhead_core.attention.multivariate.maps import row_maps
from manyhead_core.attention.settings import configure
from manyhead_core.errors import ConfigError


def parts_of(
    steps: int = 14,
    channels: int = 5,
    *,
    heads: int = 4,
    key_heads: int = 2,
    width: int = 8,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    learns: bool = False,
    seed: int = 0,
) -> Parts:
    generator = torch.Generator().manual_seed(seed)
    tokens = steps * channels
    shapes = [
        (batch, heads, tokens, width),
        *[(batch, key_heads, tokens, width)] * 2,
        (key_heads, steps, width),
        (key_heads, channels, width),
        *[(key_heads, width)] * 3,
    ]
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return Parts(*(part.requires_grad_(learns) for part in made))


def chunked(parts: Parts, rules: Rules) -> Tensor:
    return attend_fused("chunked", parts, rules)


def eager(parts: Parts, rules: Rules) -> Tensor:
    return attend_eagerly(parts, rules)[0]


def naive(parts: Parts, rules: Rules) -> Tensor:
    """The formula, one pair at a time."""
    q, k, v, pt, pc, u, b, w = parts
    batch, heads, tokens, _ = q.shape
    steps, channels = parts.steps, parts.channels
    group = heads // k.shape[1]
    out = torch.zeros_like(q)
    for one in range(batch):
        for h in range(heads):
            m = h // group
            for n in range(tokens):
                t, c = divmod(n, channels)
                scores = []
                for other in range((t + 1) * channels):
                    t2, c2 = divmod(other, channels)
                    score = (q[one, h, n] + b[m]) @ pt[m, steps - 1 - (t - t2)]
                    score = score + (q[one, h, n] + w[m]) @ pc[m, channels - 1 - abs(c - c2)]
                    if rules.content and (t - t2 <= rules.window or t == steps - 1):
                        score = score + (q[one, h, n] + u[m]) @ k[one, m, other]
                    scores.append(score * rules.scale)
                weights = torch.stack(scores).softmax(0)
                out[one, h, n] = weights @ v[one, m, : len(scores)]
    return out


def gradients(form: Callable[[Parts, Rules], Tensor], parts: Parts, rules: Rules) -> list[Tensor]:
    out = form(parts, rules)
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad(out, parts, upstream, allow_unused=True)
    return [
        out,
        *(torch.zeros_like(p) if g is None else g for g, p in zip(found, parts, strict=True)),
    ]


GRIDS = [
    pytest.param(14, 5, 10, True, id="window_in_use"),
    pytest.param(6, 3, 10, True, id="window_longer"),
    pytest.param(7, 3, 0, True, id="own_step_only"),
    pytest.param(5, 4, 10, False, id="no_content"),
    pytest.param(1, 4, 10, True, id="one_step"),
    pytest.param(13, 1, 3, True, id="one_channel"),
    pytest.param(1, 1, 10, True, id="one_token"),
]


@pytest.mark.parametrize("form", [eager, chunked])
@pytest.mark.parametrize(("steps", "channels", "window", "content"), GRIDS)
def test_forms_equal_the_formula_pair_by_pair(
    form: Callable[[Parts, Rules], Tensor], steps: int, channels: int, window: int, content: bool
) -> None:
    parts = parts_of(steps, channels, batch=1)
    rules = Rules(window=window, content=content, scale=0.4)
    torch.testing.assert_close(form(parts, rules), naive(parts, rules), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("steps", "channels", "window", "content"), GRIDS)
def test_chunked_gradients_are_those_of_the_plain_form(
    steps: int, channels: int, window: int, content: bool
) -> None:
    parts = parts_of(steps, channels, learns=True)
    rules = Rules(window=window, content=content, scale=0.4)
    both = (gradients(form, parts, rules) for form in (chunked, eager))
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    steps=st.integers(1, 16),
    channels=st.integers(1, 6),
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    window=st.integers(0, 12),
    rows=st.sampled_from([1, 8, 40, 96]),
    weights=st.sampled_from([1, 2000, 2**20]),
)
def test_forms_agree_for_any_grid_and_any_block(
    steps: int, channels: int, key_heads: int, groups: int, window: int, rows: int, weights: int
) -> None:
    parts = parts_of(
        steps, channels, heads=key_heads * groups, key_heads=key_heads, width=4, learns=True
    )
    rules = Rules(window=window, scale=0.5)
    with pytest.MonkeyPatch.context() as patch:
        place = "manyhead_core.attention.multivariate.blocks"
        patch.setattr(f"{place}.ROWS", {"cpu": rows})
        patch.setattr(f"{place}.WEIGHTS", {"cpu": weights})
        found = gradients(chunked, parts, rules)
    for one, expected in zip(found, gradients(eager, parts, rules), strict=True):
        torch.testing.assert_close(one, expected, atol=1e-11, rtol=1e-9)


def test_blocks_cover_every_step_once_and_mix_no_kinds() -> None:
    for window, content, size in ((10, True, 3), (2, True, 4), (2, False, 5), (50, True, 1)):
        blocks = plan(Rules(window=window, content=content), 25, size)
        steps = [step for block in blocks for step in range(block.start, block.stop)]
        assert sorted(steps) == list(range(25))
        assert all(0 < block.size <= size for block in blocks)
        assert all(all(block.far) or not any(block.far) for block in blocks)


def test_gradcheck_of_all_eight_inputs() -> None:
    parts = parts_of(4, 2, heads=2, key_heads=1, width=3, batch=1, learns=True)
    rules = Rules(window=1, scale=0.6)
    assert torch.autograd.gradcheck(lambda *p: chunked(Parts(*p), rules), tuple(parts))


def test_second_derivatives_are_refused() -> None:
    parts = parts_of(3, 2, learns=True)
    (slope,) = torch.autograd.grad(
        chunked(parts, Rules()).square().sum(), parts.query, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    parts = parts_of(14, 3, dtype=torch.float32)
    loud = parts._replace(step_key=200 * parts.step_key, channel_key=90 * parts.channel_key)
    for content in (True, False):
        rules = Rules(content=content)
        found = chunked(loud, rules)
        expected = eager(Parts(*(p.double() for p in loud)), rules)
        torch.testing.assert_close(found.double(), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_have_a_softmax_in_float32(dtype: torch.dtype) -> None:
    parts = parts_of(dtype=dtype, learns=True)
    found = gradients(chunked, parts, Rules(scale=0.35))
    wide = Parts(*(p.detach().double().requires_grad_() for p in parts))
    assert all(g.dtype == dtype for g in found)
    for one, expected in zip(found, gradients(eager, wide, Rules(scale=0.35)), strict=True):
        assert (one.double() - expected).norm() <= 2e-2 * expected.norm()


def test_rows_of_the_tables_mean_distances_from_the_last_used_one() -> None:
    parts = parts_of(4, 3)
    mixed = eager(parts, Rules())
    # Nothing lies three steps back but for the newest step: row 0 changes no other.
    moved = parts.step_key.clone()
    moved[:, 0] += 1.0
    changed = (eager(parts._replace(step_key=moved), Rules()) - mixed).abs().amax((0, 1, 3)) > 1e-6
    assert changed.view(4, 3).any(1).tolist() == [False, False, False, True]
    # The middle one of three channels has no other two places away.
    moved = parts.channel_key.clone()
    moved[:, 0] += 1.0
    other = eager(parts._replace(channel_key=moved), Rules())
    changed = (other - mixed).abs().amax((0, 1, 3)) > 1e-6
    assert changed.view(4, 3).any(0).tolist() == [True, False, True]


def test_keys_beyond_the_window_keep_their_place_in_the_softmax() -> None:
    parts = parts_of(6, 2)
    rules = Rules(window=2)
    query = 4 * 2  # of step 4, to which steps 0 and 1 are beyond
    weights = attend_eagerly(parts, rules)[1][:, :, query].unflatten(-1, (6, 2))
    assert (weights[:, :, :5] > 0).all()
    assert (weights[:, :, 5] == 0).all()
    loud = parts._replace(key=parts.key.clone())
    loud.key[:, :, :4] += 3.0
    found = attend_eagerly(loud, rules)[1][:, :, query]
    torch.testing.assert_close(found.unflatten(-1, (6, 2)), weights)


def test_newest_step_sees_the_content_of_all_keys() -> None:
    parts = parts_of(6, 2)
    loud = parts._replace(key=parts.key.clone())
    loud.key[:, :, 0] += 1.0
    for form in (eager, chunked):
        change = (form(loud, Rules(window=1)) - form(parts, Rules(window=1))).abs()
        per_step = change.amax((0, 1, 3)).view(6, 2).amax(1) > 1e-6
        assert per_step.tolist() == [True, True, False, False, False, True]


class Largest(TorchDispatchMode):
    """Size of the largest tensor that an operator made."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for made in found if isinstance(found, tuple | list) else [found]:
            if isinstance(made, Tensor):
                self.count = max(self.count, made.untyped_storage().nbytes() // made.itemsize)
        return found


def test_no_tensor_of_all_pairs_exists_and_memory_grows_with_the_tokens() -> None:
    largest, saved = [], []
    for steps in (60, 120):
        parts = parts_of(steps, 8, heads=2, key_heads=1, width=4, batch=1, learns=True)
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with Largest() as mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = chunked(parts, Rules())
        with Largest() as back:
            out.sum().backward()
        largest.append(max(mode.count, back.count))
        saved.append(sum(kept))
        assert largest[-1] < (steps * 8) ** 2 / 2
    assert largest[1] <= 2.2 * largest[0]
    assert saved[1] <= 2.2 * saved[0]


def mixer(**options: Any) -> ParallelAttention:
    torch.manual_seed(0)
    found = ParallelAttention(16, 4, num_key_heads=2, max_steps=24, max_channels=6, **options)
    for weight in found.parameters():
        nn.init.normal_(weight, std=0.5)
    return found


@pytest.mark.parametrize("form", ["eager", "chunked"])
def test_dropped_weights_keep_the_mean_and_repeat_with_the_seed(form: str) -> None:
    parts = parts_of(6, 4, width=4, batch=1, dtype=torch.float32)

    def run() -> Tensor:
        if form == "eager":
            return attend_eagerly(parts, Rules(), dropout=0.3)[0]
        return attend_fused("chunked", parts, Rules(), dropout=0.3)

    torch.manual_seed(3)
    first = run()
    assert not torch.equal(run(), first)
    torch.manual_seed(3)
    assert torch.equal(run(), first)
    mean = torch.stack([run() for _ in range(400)]).mean(0)
    assert (mean - eager(parts, Rules())).abs().mean() < 0.03


def test_chunked_drops_the_same_weights_in_the_backward_pass() -> None:
    parts = parts_of(13, 2, heads=2, key_heads=1, width=3, batch=2, learns=True)
    rules = Rules(window=4, scale=0.5)

    def run(*given: Tensor) -> Tensor:
        torch.manual_seed(5)
        return attend_fused("chunked", Parts(*given), rules, dropout=0.4)

    assert torch.autograd.gradcheck(run, tuple(parts), fast_mode=True)
    # With values that tell the keys apart, the outputs are the weights.
    for p in (0.0, 0.4):
        shown = parts._replace(value=torch.eye(26, dtype=torch.float64).expand(2, 1, 26, 26))
        wide = [torch.nn.functional.pad(x.detach(), (0, 23)) for x in shown]
        wide[2] = shown.value
        torch.manual_seed(0)
        weights = attend_fused("chunked", Parts(*wide), rules, dropout=p)
        plain = attend_eagerly(Parts(*wide), rules)[1]
        kept = weights != 0
        torch.testing.assert_close(weights[kept], plain[kept] / (1 - p))
        share = 1 - kept[plain > 0].double().mean()
        assert abs(share - p) < 0.06


def test_seeds_of_dropout_differ_between_blocks() -> None:
    like = torch.empty(200)
    drawn = [Dropout(0.5, 1).kept(like, *place) for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0))]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    assert torch.equal(drawn[0], Dropout(0.5, 1).kept(like, 0, 0, 0))
    assert not Dropout(1.0, 1).kept(like).any()


def test_dropped_keys_are_whole_steps_and_channels_with_the_right_share() -> None:
    parts = parts_of(15, 8, dtype=torch.float32)
    torch.manual_seed(0)
    drawn = torch.stack([kept_keys(parts, 0.3) for _ in range(300)])[..., 0].view(300, 15, 8)
    assert set(drawn.unique().tolist()) == {0.0, drawn.max().item()}
    assert drawn.max().item() == pytest.approx(1 / 0.7)
    assert abs((drawn == 0).float().mean() - 0.3) < 0.02
    rows, columns = drawn.any(2), drawn.any(1)
    assert torch.equal(drawn != 0, rows[:, :, None] & columns[:, None])


@pytest.mark.parametrize("kind", ["weights", "keys"])
def test_forms_of_the_mixer_train_with_dropout_and_agree_without(kind: Any) -> None:
    net = mixer(attention_dropout=0.2, dropout_kind=kind)
    x = torch.randn(2, 14 * 5, 16)
    found = {}
    for form in ("eager", "chunked"):
        net.form = form  # type: ignore[assignment]
        net.train()
        torch.manual_seed(1)
        dropped = net(x, grid=(14, 5)).y
        dropped.sum().backward()
        found[form] = (net.eval()(x, grid=(14, 5)).y, dropped)
        assert not torch.allclose(*found[form])
    torch.testing.assert_close(found["eager"][0], found["chunked"][0])
    if kind == "keys":
        torch.testing.assert_close(found["eager"][1], found["chunked"][1])


@pytest.mark.parametrize("reduce", [None, "head_mean", "received", "entropy"])
@pytest.mark.parametrize("queries", ["all", "first", torch.tensor([69, 3, 3])])
def test_maps_of_rows_are_those_of_the_plain_form(reduce: Any, queries: Any) -> None:
    parts, rules = parts_of(), Rules(window=3, scale=0.3)
    request = MapRequest(queries=queries, heads=[3, 0], reduce=reduce, dtype=torch.float64)
    whole = attend_eagerly(parts, rules)[1][:, [3, 0]]
    if isinstance(queries, Tensor):
        whole = whole[:, :, queries]
    elif queries == "first":
        whole = whole[:, :, :1]
    expected = {
        None: whole,
        "head_mean": whole.mean(1),
        "received": whole.sum(2),
        "entropy": torch.special.entr(whole).sum(-1),
    }[reduce]
    torch.testing.assert_close(row_maps(parts, rules, request), expected)


def test_capture_computes_only_the_rows_that_it_asks_for() -> None:
    net = mixer(form="chunked").eval()
    x = torch.randn(2, 18 * 6, 16)
    request = MapRequest(queries=torch.tensor([107, 5]))
    with capture(net, request=request) as captured, Largest() as mode:
        shown = net(x, grid=(18, 6), maps=request)
    assert shown.maps is not None
    assert shown.maps.shape == (2, 4, 2, 108)
    torch.testing.assert_close(captured.maps["heads"][0], shown.maps)
    torch.testing.assert_close(shown.maps.sum(-1), torch.ones(2, 4, 2))
    assert mode.count < 2 * 4 * 108 * 108
    torch.testing.assert_close(shown.y, net(x, grid=(18, 6)).y)


def test_choice_of_the_form_names_the_reasons() -> None:
    net = mixer()
    x = torch.randn(1, 24 * 6, 16)
    assert net.explain(x, (24, 6)).backend == "chunked"
    assert net.explain(x[:, :12], (2, 6)).backend == "eager"
    net.form = "triton"
    with pytest.raises(ConfigError, match=r"^form: triton takes heads of width 16, 32"):
        net(x, grid=(24, 6))
    net.form = "flex"
    with pytest.raises(ConfigError, match=r"^form: flex needs heads of width 16"):
        net(x, grid=(24, 6))
    wide = parts_of(width=16, dtype=torch.float32, learns=True)
    with pytest.raises(ConfigError, match="has no gradients on CPU"):
        choose_form(wide, "flex")
    with pytest.raises(ConfigError, match="flex drops no single weights"):
        choose_form(wide, "flex", drops_weights=True)
    with pytest.raises(ConfigError, match="takes float32, bfloat16 and float16"):
        choose_form(parts_of(width=16), "triton")


def test_fused_forms_are_first_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "manyhead_core.attention.multivariate.choice"
    monkeypatch.setattr(f"{place}.SHORT", 0)
    monkeypatch.setattr(f"{place}.FASTEST", {"cpu": ("triton", "flex", "chunked")})
    monkeypatch.setattr(f"{place}.HAS_TRITON", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    parts = parts_of(width=16, dtype=torch.float32)
    assert choose_form(parts).backend == "triton"
    monkeypatch.setattr(f"{place}.HAS_TRITON", False)
    info = choose_form(parts)
    assert info.backend == "flex"
    assert info.refused[0][:2] == ("triton", "needs the package triton")
    info = choose_form(parts, drops_weights=True)
    assert info.backend == "chunked"
    assert [refused.remedy for refused in info.refused] == ['set dropout_kind="keys"'] * 2
    net = ParallelAttention(32, 2, attention_dropout=0.1)
    configure(strict=True)
    try:
        with pytest.raises(ConfigError, match=r"chunked runs instead of triton.*dropout_kind"):
            net(torch.randn(1, 70, 32), grid=(14, 5))
    finally:
        configure(strict=False)


def test_flex_form_agrees() -> None:
    for steps, channels, content in ((14, 5, True), (3, 4, False)):
        parts = parts_of(steps, channels, width=16, dtype=torch.float32)
        rules = Rules(content=content, scale=0.25)
        torch.testing.assert_close(
            attend_by_flex(parts, rules), eager(parts, rules), atol=2e-5, rtol=1e-5
        )


def test_mask_of_steps_has_two_forms_that_agree() -> None:
    from manyhead_core.attention.masks import Shape

    mask = UpToOwnStep(3)
    shape = Shape(1, 1, 12, 12, torch.device("cpu"))
    index = torch.arange(12)
    read = mask.mask_mod(shape)(index[:1], index[:1], index[:, None], index)
    assert torch.equal(read, mask.dense(shape))
    assert mask.dense(shape).sum(1).tolist() == [3] * 3 + [6] * 3 + [9] * 3 + [12] * 3
    assert mask.varies == (False, False)


INTERPRETED = """
import json, sys, torch
from manyhead_core.attention.multivariate import triton_kernel
from manyhead_core.attention.multivariate.eager import attend_eagerly
from manyhead_core.attention.multivariate.fused import attend_fused
from manyhead_core.attention.multivariate.inputs import Parts, Rules

worst = {}
for steps, channels, heads, keys, width, batch, window, content in json.loads(sys.argv[1]):
    torch.manual_seed(0)
    tokens = steps * channels
    shapes = [(batch, heads, tokens, width), *[(batch, keys, tokens, width)] * 2,
              (keys, steps, width), (keys, channels, width), *[(keys, width)] * 3]
    parts = Parts(*(torch.randn(s, requires_grad=True) for s in shapes))
    rules = Rules(window=window, content=content, scale=width**-0.5)
    expected, found = attend_eagerly(parts, rules)[0], attend_fused("triton", parts, rules)
    grad = torch.randn_like(expected)
    slopes = [torch.autograd.grad(out, parts, grad, allow_unused=True) for out in (expected, found)]
    pairs = [(expected, found), *zip(*slopes)]
    for name, (one, other) in zip(["out", *Parts._fields], pairs):
        one = torch.zeros_like(other) if one is None else one
        error = (one - other).abs().max() / (1 + one.abs().max())
        worst[name] = max(worst.get(name, 0.0), error.item())
print(json.dumps(worst))
"""


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([(14, 5, 2, 1, 16, 1, 10, True)], id="window_in_use"),
        pytest.param([(3, 5, 4, 2, 64, 2, 10, True), (1, 1, 1, 1, 16, 1, 10, True)], id="wide"),
        pytest.param([(3, 35, 1, 1, 16, 1, 0, True), (3, 7, 2, 1, 16, 1, 2, False)], id="tails"),
    ],
)
def test_triton_kernels_agree_in_the_interpreter(shapes: list[tuple[int, ...]]) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, json.dumps(shapes)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 9
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["chunked", "flex", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forms_agree_on_a_gpu(form: str, dtype: torch.dtype) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    rules = Rules(scale=0.125)
    made = parts_of(25, 33, heads=6, key_heads=2, width=64, batch=2, dtype=dtype)
    parts = Parts(*(p.cuda().requires_grad_() for p in made))
    wide = Parts(*(p.detach().double().requires_grad_() for p in parts))
    run = attend_by_flex if form == "flex" else lambda p, r: attend_fused(form, p, r)
    found, expected = run(parts, rules), eager(wide, rules)
    upstream = torch.randn_like(found)
    slopes = torch.autograd.grad(found, parts, upstream)
    wanted = torch.autograd.grad(expected, wide, upstream.double())
    limit = 2e-2 if dtype == torch.bfloat16 else 2e-4
    for one, other in zip((found, *slopes), (expected, *wanted), strict=True):
        assert (one.double() - other).norm() <= limit * other.norm()


class Bare(nn.Module):
    def __init__(self, net: ParallelAttention) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, grid=(14, 5)).y


def test_compiled_and_exported_graphs_agree() -> None:
    net = mixer().eval().double()
    x = torch.randn(2, 70, 16, dtype=torch.float64)
    expected = net(x, grid=(14, 5)).y
    compiled = torch.compile(Bare(net), fullgraph=True, backend="aot_eager")
    found = compiled(x)
    torch.testing.assert_close(found, expected)
    slopes = [
        torch.autograd.grad(out.square().sum(), list(net.parameters())) for out in (found, expected)
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(Bare(net), (x,), dynamic_shapes=shapes)
    assert not any("manyhead" in str(node.target) for node in program.graph.nodes)
    more = torch.randn(5, 70, 16, dtype=torch.float64)
    torch.testing.assert_close(program.module()(more), net(more, grid=(14, 5)).y)


def test_operator_keeps_the_rules_of_torch() -> None:
    parts = parts_of(4, 3, learns=True)
    torch.library.opcheck(
        torch.ops.manyhead.parallel_attention.default, ("chunked", 2, True, 0.3, *parts)
    )


def test_autocast_changes_neither_softmax_nor_gradients_much() -> None:
    net = mixer(form="chunked")
    x = torch.randn(2, 70, 16)
    expected = net(x, grid=(14, 5)).y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(x, grid=(14, 5)).y
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 3e-2 * expected.norm()
    found.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_mistakes_are_named() -> None:
    for option, value in (("form", "fast"), ("dropout_kind", "heads"), ("attention_dropout", 1.0)):
        with pytest.raises(ConfigError, match=f"^{option}: "):
            mixer(**{option: value})
    with pytest.raises(ConfigError, match="num_key_heads: 3 does not divide num_heads=4"):
        ParallelAttention(16, 4, num_key_heads=3)
    with pytest.raises(ConfigError, match="steps: 25 are more than the 24 rows"):
        mixer()(torch.randn(1, 25, 16), grid=(25, 1))
    with pytest.raises(ConfigError, match="channels: 7 are more than the 6 rows"):
        mixer()(torch.randn(1, 7, 16), grid=(1, 7))
    with pytest.raises(ConfigError, match="no tables of its own"):
        mixer(own_positions=False)(torch.randn(1, 6, 16), grid=(2, 3))
    parts = parts_of(3, 2)
    with pytest.raises(ConfigError, match="3 steps of 2 channels are 6 tokens, got 4"):
        check(parts._replace(query=parts.query[:, :, :4]))
    with pytest.raises(ConfigError, match="3 query heads are no multiple of 2"):
        check(parts._replace(query=parts.query[:, :3]))
