"""What every mixer promises by its capabilities, tested for each pattern that it declares.

Patterns as in CAB (Zhang et al., ICML 2023, arXiv 2210.07661): N non-causal, C causal; S self,
C cross. Everything runs in float64 with weights that make attention sharp: a sum of absolute
differences over 25,600 numbers is then a test of the mechanism and not of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manyhead_core.attention import Attend, MapRequest
from manyhead_core.attention.capture import attention_sites, capture, edit_weights
from manyhead_core.attention.layer import HeadOutputs
from manyhead_core.attention.masks import Causal, Dense, KeyPadding, Mask, SlidingWindow
from manyhead_core.attention.mixer import PATTERNS, MixerOutput, TokenMixer, UnsupportedPattern
from manyhead_core.attention.registry import MIXERS, available, build, mixer_class

BATCH, QUERIES, KEYS = 4, 50, 100
GRID = (8, 12)
DIM, HEADS = 64, 4
MORE = 12  # masked tokens added, a row of the grid
TOLERANCE = 1e-4  # of the sum of absolute differences


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a mixer is built here, and where a promise cannot hold, with the reason.

    Args:
        options: What its constructor needs beside `dim` and `num_heads`.
        plain: Whether, with `zeroed` parameters at zero, it is `softmax(q k) v` between `qkv` and
            `proj`; `residual` if the queries are added.
        same_grid: Why queries and keys have to be equal in number.
        decoding: Options under which a state continues a sequence, or why its state does not.
        frame: Why masked tokens cannot be added at the end.
        sees: Why a token sees something although everything is masked.
        sums: Why rows of its maps do not sum to one.
        idle: Whether rows of tokens that a head does not take are zero.
    """

    options: dict[str, Any] = field(default_factory=dict)
    plain: bool = False
    zeroed: tuple[str, ...] = ()
    residual: bool = False
    same_grid: str = ""
    decoding: dict[str, Any] | str = field(default_factory=dict)
    frame: str = ""
    sees: str = ""
    sums: str = ""
    idle: bool = False


ROWS: dict[str, Row] = {
    "softmax": Row(plain=True),
    "moh": Row(options={"shared_heads": 1, "routed_heads": 2}),
    # With more than one step, the convolution of queries starts anew at every segment.
    "rcmha": Row(options={"max_distance": 128}, decoding={"kernel_size": 1, "memory_length": KEYS}),
    "linear": Row(),
    "inline": Row(),
    "spectral": Row(options={"size": GRID}),
    "dynamic_mask": Row(options={"keep_window": 16}),
    "aggregated": Row(
        options={"size": GRID, "sr_ratio": 4}, sums="learned weights come on top of the softmax"
    ),
    "aggregated_full": Row(options={"size": GRID}),
    "bra": Row(options={"num_windows": 4}, frame="its regions are shares of the map"),
    "lsda": Row(options={"group_size": 4}),
    "halo": Row(options={"block_size": 4, "halo_size": 1}),
    "neighborhood": Row(
        options={"window_size": 5}, frame="windows at the border are moved into the map"
    ),
    "group": Row(),
    "gaam": Row(),
    "shsa": Row(),
    "ulsam": Row(),
    "sparsifiner": Row(options={"num_tokens": KEYS}),
    "routing": Row(options={"num_clusters": 4, "window_size": 32}),
    "smha": Row(idle=True),
    "match": Row(same_grid="a query looks at places of its own map"),
    "msa_conv": Row(),
    "glca": Row(plain=True),
    "conditional_cross": Row(options={"num_conditions": 3}, plain=True),
    "pooled_cross": Row(plain=True, residual=True),
    "summary": Row(
        options={"num_tasks": 5, "num_selectors": 9}, sees="the class token sees itself"
    ),
    "label_cross": Row(options={"num_labels": 7}, plain=True),
    "low_rank_pool": Row(),
    "realloc": Row(plain=True, zeroed=("log_factors",)),
    "mvpa": Row(),
    "identity": Row(),
    "uniform": Row(),
    "static_qk": Row(decoding="its state is for the next layer, not for the next segment"),
    "position_qk": Row(options={"num_tokens": KEYS + MORE}),
    "random_qk": Row(decoding="its state is for the next layer, not for the next segment"),
    "linear_qk": Row(sums="there is no softmax"),
}


def cases(*patterns: str, **able: object) -> list[Any]:
    """Mechanism and declared pattern, for mixers with all these capabilities."""
    found = []
    for name in MIXERS:
        has = mixer_class(name).capabilities
        if all(getattr(has, what) in wanted for what, wanted in able.items()):  # type: ignore[operator]
            found += [(name, p) for p in PATTERNS if p in has.patterns and p in patterns]
    return [pytest.param(*case, id="-".join(case)) for case in found]


ALL, MASKED, YES = tuple(PATTERNS), ("keys", "any"), (True,)


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def mixer_of(name: str, **options: Any) -> TokenMixer:
    """In evaluation, with weights that make scores of about one."""
    mixer = build(name, dim=DIM, num_heads=HEADS, **{**ROWS[name].options, **options}).eval()
    for weight in mixer.parameters():
        nn.init.normal_(weight, std=2 * weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.5)
    if name == "gaam":
        # Widths of Gaussians are no weights: near zero they have no precision left.
        for head in mixer.attention_heads:
            nn.init.uniform_(head.c, 0.5, 2.0)
    if name == "routing":
        mixer(torch.randn(BATCH, KEYS, DIM))  # starts the means
    return mixer


@dataclass
class Call:
    """One call of a mixer in a pattern, on random tokens."""

    mixer: TokenMixer
    pattern: str
    x: Tensor
    context: Tensor | None
    grid: tuple[int, int] | None

    def __call__(self, *, mask: Mask | None = None, **more: Any) -> MixerOutput:
        causal = Causal() if self.pattern[0] == "C" else None
        both = [part for part in (causal, mask) if part is not None]
        whole = both[0] & both[1] if len(both) == 2 else next(iter(both), None)
        return self.mixer(self.x, self.context, mask=whole, grid=self.grid, **more)

    @property
    def source(self) -> Tensor:
        """Where keys come from."""
        return self.x if self.context is None else self.context


def call_of(name: str, pattern: str, **options: Any) -> Call:
    mixer = mixer_of(name, **options)
    flat = mixer.capabilities.layouts == {"2d"}
    grid = GRID if flat or ("2d" in mixer.capabilities.layouts and pattern == "NS") else None
    tokens = GRID[0] * GRID[1] if grid else KEYS
    if pattern[1] == "S":
        return Call(mixer, pattern, torch.randn(BATCH, tokens, DIM), None, grid)
    queries = tokens if ROWS[name].same_grid else QUERIES
    x, context = torch.randn(BATCH, queries, DIM), torch.randn(BATCH, tokens, DIM)
    return Call(mixer, pattern, x, context, grid)


def with_backend(mixer: TokenMixer, backend: Any) -> None:
    for layer in mixer.modules():
        if isinstance(layer, Attend):
            layer.backend = backend


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().sum() <= TOLERANCE


def padded(call: Call, extra: int) -> tuple[Call, KeyPadding]:
    """The call with loud tokens after the keys, which the mask hides."""
    source = torch.cat([call.source, 10 * torch.randn(BATCH, extra, DIM)], 1)
    mask = KeyPadding((torch.arange(source.shape[1]) < call.source.shape[1]).expand(BATCH, -1))
    if call.context is not None:
        return Call(call.mixer, call.pattern, call.x, source, call.grid), mask
    grid = None if call.grid is None else (source.shape[1] // GRID[1], GRID[1])
    return Call(call.mixer, call.pattern, source, None, grid), mask


def test_every_mixer_has_a_row_here() -> None:
    assert sorted(ROWS) == sorted(MIXERS)


@pytest.mark.parametrize(("name", "pattern"), cases(*ALL))
def test_pattern_runs_and_the_tokens_reach_the_output(name: str, pattern: str) -> None:
    call = call_of(name, pattern)
    found = call().y
    assert found.shape[:2] == call.x.shape[:2]
    assert torch.isfinite(found).all()
    loud = Call(call.mixer, pattern, call.x, call.context, call.grid)
    if call.context is None:
        loud.x = call.x + 0.5 * torch.randn_like(call.x)
    else:
        loud.context = call.context + 0.5 * torch.randn_like(call.context)
    assert (loud().y - found).abs().sum() > 1.0


@pytest.mark.parametrize(("name", "pattern"), cases(*ALL))
def test_kernels_agree_with_the_written_out_form(name: str, pattern: str) -> None:
    call = call_of(name, pattern)
    expected = call().y
    with_backend(call.mixer, "eager")
    assert_same(call().y, expected)
    sites = [n for n, s in attention_sites(call.mixer).items() if isinstance(s, Attend)]
    with edit_weights(call.mixer, {site: lambda weights: weights for site in sites}):
        assert_same(call().y, expected)


def _plain(call: Call) -> Tensor:
    """Softmax attention with the weights of the mixer, in matrices."""
    qkv, proj = call.mixer.qkv, call.mixer.proj
    parts = zip((call.x, *(call.source,) * 2), qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True)
    query, key, value = (
        nn.functional.linear(*part).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts
    )
    scores = query @ key.mT / (DIM // HEADS) ** 0.5
    if call.pattern[0] == "C":
        late = torch.ones(scores.shape[-2:], dtype=torch.bool)
        scores = scores.masked_fill(
            late.triu(scores.shape[-1] - scores.shape[-2] + 1), float("-inf")
        )
    out = scores.softmax(-1) @ value
    return proj(out.transpose(1, 2).flatten(2)) + (call.x if ROWS[call.mixer.name].residual else 0)


@pytest.mark.parametrize(
    ("name", "pattern"), [case for case in cases(*ALL) if ROWS[case.values[0]].plain]
)
def test_plain_attention_equals_the_formula(name: str, pattern: str) -> None:
    call = call_of(name, pattern)
    for parameter in ROWS[name].zeroed:
        nn.init.zeros_(getattr(call.mixer, parameter))
    assert_same(call().y, _plain(call))


@pytest.mark.parametrize(("name", "pattern"), cases("CS"))
def test_causal_self_output_needs_the_prefix_only(name: str, pattern: str) -> None:
    call = call_of(name, pattern)
    whole = call().y
    for length in (1, 2, 17, KEYS - 1):
        prefix = Call(call.mixer, pattern, call.x[:, :length], None, None)
        assert_same(prefix().y, whole[:, :length])


@pytest.mark.parametrize(
    "name", [n for n in MIXERS if mixer_class(n).capabilities.leaky], ids="{}-leaky".format
)
def test_leaky_patterns_leak_as_declared(name: str) -> None:
    assert mixer_class(name).capabilities.leaky == {"CS"}
    call = call_of(name, "CS")
    prefix = Call(call.mixer, "CS", call.x[:, : KEYS // 2], None, None)
    assert (prefix().y - call().y[:, : KEYS // 2]).abs().sum() > 1.0


@pytest.mark.parametrize(("name", "pattern"), cases("CC"))
def test_causal_cross_output_needs_earlier_queries_and_visible_keys_only(
    name: str, pattern: str
) -> None:
    call = call_of(name, pattern)
    context = call.source
    early = Causal("upper_left")
    whole, late = call.mixer(call.x, context, mask=early).y, call().y
    for length in (1, 2, 17, QUERIES - 1):
        x = call.x[:, :length]
        assert_same(call.mixer(x, context, mask=early).y, whole[:, :length])
        known = context[:, : KEYS - QUERIES + length]
        assert_same(Call(call.mixer, pattern, x, known, None)().y, late[:, :length])


STATEFUL = [n for n in MIXERS if mixer_class(n).capabilities.stateful]
DECODING = [n for n in STATEFUL if not isinstance(ROWS[n].decoding, str)]


@pytest.mark.parametrize("steps", [[1] * 20, [7, 1, 12]], ids=["tokens", "segments"])
@pytest.mark.parametrize("name", DECODING, ids="{}-CS".format)
def test_decoding_with_a_state_equals_the_parallel_form(name: str, steps: Sequence[int]) -> None:
    call = call_of(name, "CS", **ROWS[name].decoding)  # type: ignore[arg-type]
    x = call.x[:, : sum(steps)]
    state, parts = None, []
    for part in x.split(list(steps), 1):
        found = call.mixer(part, mask=Causal(), memory=state)
        parts.append(found.y)
        state = found.state
    assert_same(torch.cat(parts, 1), call.mixer(x, mask=Causal()).y)


def refused() -> list[Any]:
    """Pairs that a mixer does not declare.

    A mixer without a self pattern reads `mixer(x)` as tokens that it makes queries for, which is a
    cross pattern: it cannot be asked for a self pattern.
    """
    found = []
    for name in MIXERS:
        able = mixer_class(name).capabilities
        possible = set(PATTERNS) if able.patterns & {"NS", "CS"} else {"NC", "CC"}
        found += [(name, p) for p in sorted(possible - able.patterns - able.leaky)]
    return [pytest.param(*case, id="-".join(case)) for case in found]


@pytest.mark.parametrize(("name", "pattern"), refused())
def test_undeclared_pattern_is_refused_with_alternatives(name: str, pattern: str) -> None:
    call = call_of(name, pattern)
    with pytest.raises(UnsupportedPattern) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(f"{name}: does not support {PATTERNS[pattern]}; mixers that do: ")
    others = text.split(": ")[-1].split(", ")
    assert others == available(pattern=pattern)
    assert others
    assert name not in others


@pytest.mark.parametrize(
    "name", [n for n in MIXERS if mixer_class(n).capabilities.mask != "any"], ids=str
)
def test_masks_that_a_mixer_cannot_honour_are_refused(name: str) -> None:
    able = mixer_class(name).capabilities
    call = call_of(name, next(p for p in PATTERNS if p in able.patterns))
    tokens = call.source.shape[1]
    masks: list[Mask] = [SlidingWindow(2, 2), Dense(torch.ones(1, tokens, dtype=torch.bool))]
    masks += [KeyPadding(torch.full((BATCH,), tokens))] if able.mask == "none" else []
    for mask in masks:
        with pytest.raises(UnsupportedPattern, match=f"^{name}: does not support masks"):
            call(mask=mask)


@pytest.mark.parametrize(("name", "pattern"), cases(*ALL, mask=MASKED))
def test_masked_keys_change_nothing(name: str, pattern: str) -> None:
    call = call_of(name, pattern)
    if not ROWS[name].frame and pattern != "CC":
        more, mask = padded(call, MORE)
        expected = call().y
        assert (more(mask=mask).y[:, : expected.shape[1]] - expected).abs().max() <= 1e-6
    tokens = call.source.shape[1]
    valid = torch.arange(tokens) < torch.tensor([tokens, tokens - 1, tokens // 2, 3])[:, None]
    shown = valid if call.context is None else torch.ones(call.x.shape[:2], dtype=torch.bool)
    expected = call(mask=KeyPadding(valid)).y[shown]
    loud = call.source + 10 * torch.randn_like(call.source) * ~valid[..., None]
    x, context = (loud, None) if call.context is None else (call.x, loud)
    other = Call(call.mixer, pattern, x, context, call.grid)
    assert (other(mask=KeyPadding(valid)).y[shown] - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize(("name", "pattern"), cases(*ALL, mask=MASKED))
def test_fully_masked_rows_are_zero_before_the_output_and_have_finite_gradients(
    name: str, pattern: str, backend: str
) -> None:
    call = call_of(name, pattern)
    with_backend(call.mixer, backend)
    call.x.requires_grad_()
    call.source.requires_grad_()
    nothing = torch.ones(BATCH, call.source.shape[1], dtype=torch.bool)
    nothing[0] = False
    masks: list[Mask] = [KeyPadding(nothing)]
    if call.mixer.capabilities.mask == "any":
        row = torch.ones(call.x.shape[1], call.source.shape[1], dtype=torch.bool)
        row[3] = False
        masks.append(Dense(row))
    for mask in masks:
        with capture(call.mixer, request=None, head_outputs=True) as captured:
            found = call(mask=mask).y
        assert torch.isfinite(found).all()
        found.square().sum().backward()
        gradients = [w.grad for w in (call.x, call.source, *call.mixer.parameters())]
        assert all(torch.isfinite(g).all() for g in gradients if g is not None)
        if isinstance(mask, KeyPadding) and not ROWS[name].sees:
            for out in (out for outs in captured.head_outputs.values() for out in outs):
                assert (out[: len(out) // BATCH] == 0).all()
                assert (out[len(out) // BATCH :] != 0).any()


@pytest.mark.parametrize(("name", "pattern"), cases(*ALL, maps=YES))
def test_rows_of_maps_sum_to_one_over_visible_keys(name: str, pattern: str) -> None:
    call = call_of(name, pattern)
    found = call(maps=MapRequest(dtype=torch.float64))
    assert_same(found.y, call().y)
    assert found.maps is not None
    assert found.maps.shape[0] == BATCH
    total = found.maps.sum(-1)
    if ROWS[name].idle:
        idle = (found.maps == 0).all(-1)
        assert 0 < idle.sum() < idle.numel()
        total = total[~idle]
    if not ROWS[name].sums:
        assert (total - 1).abs().max() <= 1e-5
    if pattern[0] == "C":
        assert not found.maps.triu(found.maps.shape[-1] - found.maps.shape[-2] + 1).any()


@pytest.mark.parametrize(("name", "pattern"), cases(*ALL, heads=YES))
def test_gates_of_one_change_nothing_and_gates_of_zero_silence_heads(
    name: str, pattern: str
) -> None:
    call = call_of(name, pattern)
    with capture(call.mixer, request=None, head_outputs=True) as captured:
        expected = call().y
    heads = {out.shape[1] for outs in captured.head_outputs.values() for out in outs}
    assert len(heads) == 1
    ones = torch.ones(heads.pop())
    assert_same(call(head_gate=ones).y, expected)
    assert_same(call(head_gate=ones.expand(BATCH, -1)).y, expected)
    assert (call(head_gate=0 * ones).y - expected).abs().sum() > 1.0


def test_mixers_with_heads_or_maps_have_sites_where_tools_find_them() -> None:
    for name in MIXERS:
        able = mixer_class(name).capabilities
        sites = attention_sites(mixer_of(name))
        assert all(isinstance(site, Attend | HeadOutputs) for site in sites.values())
        if able.heads or (able.maps and name != "aggregated"):
            assert sites, name
