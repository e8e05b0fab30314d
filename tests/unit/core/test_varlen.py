"""Packed sequences against padded ones: by the loop on CPU, by the kernel with `-m gpu`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyhead_core.attention import attend, packed
from manyhead_core.attention.biases import Alibi
from manyhead_core.attention.masks import (
    Align,
    Causal,
    KeyPadding,
    Mask,
    Prefix,
    Shape,
    SlidingWindow,
)
from manyhead_core.attention.varlen import packed_reference, unable, varlen, varlen_packed
from manyhead_core.errors import ConfigError


def tensors(queries: int = 5, keys: int = 7, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    return [draw(3, 4, queries, 8), draw(3, 2, keys, 8), draw(3, 2, keys, 8)]


def assert_same(inputs: list[Tensor], mask: Mask | None, scale: float | None = None) -> None:
    """Output, lse and gradients, of every query."""
    out, lse = varlen(*inputs, mask=mask, scale=scale, return_lse=True)
    allowed = None if mask is None else mask.dense(Shape.of(inputs[0], inputs[1]))
    expected = attend(*inputs, mask=allowed, scale=scale, backend="eager", return_lse=True)
    torch.testing.assert_close(out, expected.out)
    torch.testing.assert_close(lse, expected.lse)
    if out.numel():
        ours, theirs = (torch.autograd.grad(x.square().sum(), inputs) for x in (out, expected.out))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@settings(deadline=None, max_examples=25)
@given(
    queries=st.integers(0, 6),
    keys=st.integers(0, 6),
    window=st.none() | st.tuples(st.integers(0, 5), st.integers(0, 3)),
    causal=st.booleans(),
    align=st.sampled_from(["lower_right", "upper_left"]),
    lengths=st.none() | st.tuples(*(st.integers(0, 6),) * 3),
)
def test_padded_form_is_the_masked_form_for_every_query(
    queries: int,
    keys: int,
    window: tuple[int, int] | None,
    causal: bool,
    align: Align,
    lengths: tuple[int, int, int] | None,
) -> None:
    parts: list[Mask] = []
    if window is not None:
        parts.append(SlidingWindow(*window, align))
    if causal:
        parts.append(Causal())
    if lengths is not None:
        parts.append(KeyPadding(torch.tensor(lengths)))
    mask = None
    for part in parts:
        mask = part if mask is None else mask & part
    assert_same(tensors(queries, keys), mask)


def test_padding_may_be_anywhere_without_a_mask_of_positions() -> None:
    flags = torch.tensor([[False, True] * 3 + [True], [False] * 7, [True] * 7])
    assert_same(tensors(), KeyPadding(flags), scale=0.3)
    assert_same(tensors(), KeyPadding(flags) & KeyPadding(torch.tensor([4, 4, 4])))
    assert_same(tensors(), KeyPadding(flags[:1]))
    with pytest.raises(ConfigError, match="varlen needs padding at the end of the keys beside"):
        varlen(*tensors(), mask=Causal() & KeyPadding(flags))


def test_hidden_keys_never_reach_the_packed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "manyhead_core.attention.varlen.varlen_packed",
        lambda query, key, *rest, **options: (
            seen.append((query.shape[0], key.shape[0])) or (query, None)
        ),
    )
    varlen(*tensors(5, 7), mask=KeyPadding(torch.tensor([7, 2, 0])))
    # A window of 2 behind 7 keys of memory: the first five are seen by nobody.
    varlen(*tensors(2, 9), mask=SlidingWindow(2, 0) & KeyPadding(torch.tensor([9, 9, 4])))
    # Nothing lies before the first three of five queries on two keys.
    varlen(*tensors(5, 2), mask=Causal() & KeyPadding(torch.tensor([2, 1, 0])))
    assert seen == [(15, 9), (6, 8), (6, 3)]


def test_packed_sequences_attend_to_themselves_alone() -> None:
    tokens = torch.randn(9, 2, 8, requires_grad=True)
    starts = torch.tensor([0, 4, 4, 9])
    out, lse = varlen_packed(tokens, tokens, tokens, starts, return_lse=True)
    assert lse is not None
    for start, end in ((0, 4), (4, 9)):
        part = tokens[start:end].transpose(0, 1)[None]
        alone = attend(part, part, part, backend="eager", return_lse=True)
        torch.testing.assert_close(out[start:end], alone.out[0].transpose(0, 1))
        torch.testing.assert_close(lse[start:end], alone.lse[0].T)
    out[4:].sum().backward()
    assert not tokens.grad[:4].any()


def test_packed_sequences_may_lack_queries_or_keys() -> None:
    query = torch.randn(5, 2, 8, requires_grad=True)
    key = torch.randn(4, 2, 8, requires_grad=True)
    starts, key_starts = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 0, 3, 4])
    out, lse = varlen_packed(query, key, key, starts, key_starts, return_lse=True)
    assert not out[:2].any()
    assert (lse[:2] == float("-inf")).all()
    assert torch.allclose(out[2:], key[3:].expand(3, -1, -1))
    out.square().sum().backward()
    assert not query.grad[:2].any()
    assert not key.grad[:3].any()
    assert torch.isfinite(key.grad).all()
    nothing, _ = varlen_packed(query, key[:0], key[:0], starts, torch.zeros(4, dtype=torch.int32))
    assert not nothing.any()


def test_packed_windows_count_from_the_last_key() -> None:
    query, key = torch.randn(3, 1, 8), torch.randn(5, 1, 8)
    whole = torch.tensor([0, 3]), torch.tensor([0, 5])
    for window, mask in (
        ((-1, 0), Causal()),
        ((1, 0), SlidingWindow(1, 0)),
        ((0, -1), SlidingWindow(0, 9)),
    ):
        out, _ = varlen_packed(query, key, key, *whole, window=window)
        part = [x.transpose(0, 1)[None] for x in (query, key, key)]
        expected = attend(*part, mask=mask.dense(Shape.of(part[0], part[1])), backend="eager").out
        torch.testing.assert_close(out, expected[0].transpose(0, 1))


@pytest.mark.parametrize("starts", [[1, 9], [0, 8], [0, 6, 4, 9]])
def test_packed_boundaries_have_to_fit(starts: list[int]) -> None:
    tokens = torch.randn(9, 2, 8)
    with pytest.raises(ConfigError, match="does not run from 0 to 9 tokens without going back"):
        varlen_packed(tokens, tokens, tokens, torch.tensor(starts))
    with pytest.raises(ConfigError, match="1 sequences of queries and 2 of keys"):
        varlen_packed(tokens, tokens, tokens, torch.tensor([0, 9]), torch.tensor([0, 4, 9]))


def half(width: int = 16, value_dim: int | None = None) -> list[Tensor]:
    query, key = (torch.randn(2, 2, 4, width, dtype=torch.bfloat16) for _ in range(2))
    return [query, key, torch.randn(2, 2, 4, value_dim or width, dtype=torch.bfloat16)]


LIMITS: dict[str, dict[str, Any]] = {
    "takes no bias and no score_mod": {"bias": Alibi(torch.ones(2))},
    "has no dropout": {"dropout_p": 0.1},
    "takes key padding, causality and sliding windows only": {"mask": Causal() | Prefix(1)},
    "has no gradient of the lse": {"return_lse": True, "learns": True},
    "needs values as wide as keys": {"value_dim": 8},
    "needs a head width that is a multiple of 8 and at most 256": {"width": 12},
    "takes bfloat16 and float16 only": {"dtype": torch.float32},
    "runs on CUDA only": {},
}


@pytest.mark.parametrize("reason", LIMITS)
def test_varlen_names_its_limit(reason: str) -> None:
    case = dict(LIMITS[reason])
    inputs = half(case.pop("width", 16), case.pop("value_dim", None))
    inputs = [x.to(case.get("dtype", x.dtype)) for x in inputs]
    case.pop("dtype", None)
    inputs[0].requires_grad_(case.pop("learns", False))
    assert unable(*inputs, **case) == reason
    if "mask" in case:
        with pytest.raises(ConfigError, match=f"varlen {reason}; use auto or eager"):
            varlen(*inputs, **case)
    assert unable(*half(), mask=torch.ones(4, 4, dtype=torch.bool)) == (
        "takes key padding, causality and sliding windows only"
    )
    assert unable(*half(), score_mod=lambda s, b, h, q, k: s) == ("takes no bias and no score_mod")


@pytest.mark.parametrize(
    ("capability", "module", "reason"),
    [
        ((7, 5), object(), "needs a CUDA device of compute capability 8.0 or more"),
        ((8, 0), None, "needs torch 2.10 or newer"),
        ((9, 0), object(), None),
    ],
)
def test_varlen_names_old_devices_and_versions(
    capability: tuple[int, int],
    module: object,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(packed, "_attention", lambda: module)
    query = SimpleNamespace(
        shape=(2, 2, 4, 16),
        dtype=torch.float16,
        device=torch.device("cuda"),
        requires_grad=False,
    )
    assert packed.no_kernel(query, query, query, return_lse=False) == reason


class Aux(SimpleNamespace):
    """Stands for torch's request of the lse."""


def early(query, key, value, starts, key_starts, most, key_most, is_causal=False, return_aux=None):
    """The form of torch 2.10."""
    window = (-1, 0) if is_causal else (-1, -1)
    return as_kernel(query, key, value, starts, key_starts, window, None)


def middle(
    query,
    key,
    value,
    starts,
    key_starts,
    most,
    key_most,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
):
    """The form of torch 2.11."""
    return as_kernel(query, key, value, starts, key_starts, window_size, scale)


def late(
    query,
    key,
    value,
    starts,
    key_starts,
    most,
    key_most,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    """The form of torch 2.12 and 2.13."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    return as_kernel(query, key, value, starts, key_starts, window_size, scale)


def as_kernel(query, key, value, starts, key_starts, window, scale):
    assert query.shape[1] == key.shape[1]
    assert starts.dtype == key_starts.dtype == torch.int32
    out, lse = packed_reference(
        query, key, value, starts, key_starts, window=window, scale=scale, return_lse=True
    )
    return out, lse.masked_fill(lse == float("-inf"), float("inf")).T


@pytest.mark.parametrize("form", [early, middle, late])
def test_every_form_of_the_torch_function_is_called_alike(
    form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(varlen_attn=form, AuxRequest=Aux)
    monkeypatch.setattr(packed, "_attention", lambda: module)
    query, key = torch.randn(6, 4, 8), torch.randn(5, 2, 8)
    starts = torch.tensor([0, 3, 6], dtype=torch.int32), torch.tensor([0, 5, 5], dtype=torch.int32)
    for window, scale in (((-1, -1), 0.7), ((-1, 0), None), ((1, 2), 0.2)):
        options = {"window": window, "scale": scale, "return_lse": True}
        if form is early and window == (1, 2):
            with pytest.raises(ConfigError, match=r"needs torch 2\.11 for windows"):
                packed._kernel(query, key, key, starts, (3, 5), **options)
            continue
        found = packed._kernel(query, key, key, starts, (3, 5), **options)
        expected = packed_reference(query, key, key, *starts, **options)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_a_window_longer_than_the_keys_still_cuts_when_queries_are_more() -> None:
    def kernel(query, key, value, starts, longest, window, scale, *, return_lse):
        window = tuple(-1 if side >= longest[1] else side for side in window)
        return packed_reference(
            query, key, value, *starts, window=window, scale=scale, return_lse=return_lse
        )

    query, key = torch.randn(9, 2, 8), torch.randn(3, 2, 8)
    starts = torch.tensor([0, 9]), torch.tensor([0, 3])
    for window in ((-1, 4), (5, 7), (-1, 40), (2, 12), (2, -1)):
        expected, _ = packed_reference(query, key, key, *starts, window=window)
        kept, most = packed._honoured(window, (9, 3))
        found, _ = kernel(query, key, key, starts, most, kept, None, return_lse=False)
        torch.testing.assert_close(found, expected)
    cut, _ = kernel(query, key, key, starts, (9, 3), (-1, 4), None, return_lse=False)
    expected, _ = packed_reference(query, key, key, *starts, window=(-1, 4))
    assert not torch.allclose(cut, expected)


GPU_MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": Causal(),
    "causal_upper": Causal("upper_left"),
    "padding": KeyPadding(torch.tensor([130, 37, 0])),
    "holes": KeyPadding(torch.rand(3, 130, generator=torch.Generator().manual_seed(0)) > 0.5),
    "causal_padding": Causal() & KeyPadding(torch.tensor([130, 37, 0])),
    "long_window": SlidingWindow(131, 140, "upper_left"),
    "window_padding": SlidingWindow(9, 2) & KeyPadding(torch.tensor([130, 37, 1])),
}


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [130, 40, 150])
@pytest.mark.parametrize("name", sorted(GPU_MASKS))
def test_the_kernel_is_the_loop(name: str, queries: int) -> None:
    mask = GPU_MASKS[name]
    drawn = [
        torch.randn(3, heads, tokens, 32, device="cuda", dtype=torch.bfloat16)
        for heads, tokens in ((4, queries), (2, 130), (2, 130))
    ]
    ours = [x.clone().requires_grad_() for x in drawn]
    theirs = [x.float().requires_grad_() for x in drawn]
    assert unable(*ours, mask=mask) is None
    out, _ = varlen(*ours, mask=mask)
    allowed = None if mask is None else mask.dense(Shape.of(theirs[0], theirs[1]))
    expected = attend(*theirs, mask=allowed, backend="eager", return_lse=True)
    torch.testing.assert_close(out.float(), expected.out, rtol=2e-2, atol=2e-2)
    with torch.no_grad():
        _, lse = varlen(*ours, mask=mask, return_lse=True)
    torch.testing.assert_close(lse, expected.lse, rtol=2e-2, atol=2e-2)
    for x in (out, expected.out):
        x.float().square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
def test_the_kernel_takes_empty_sequences() -> None:
    query, key = (
        torch.randn(n, 2, 32, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for n in (50, 40)
    )
    starts = (
        torch.tensor([0, 20, 20, 50], device="cuda"),
        torch.tensor([0, 0, 30, 40], device="cuda"),
    )
    out, _ = varlen_packed(query, key, key, *starts)
    expected, _ = packed_reference(query, key, key, *starts)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    assert not out[:20].any()
    out.float().square().sum().backward()
    assert not query.grad[:20].any()
    assert torch.isfinite(key.grad).all()
