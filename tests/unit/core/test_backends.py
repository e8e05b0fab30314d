"""All kernels agree, and the one that is taken is the one that the table names."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from manyhead_core.attention import MapRequest, attend, explain_backend, kernels, scores
from manyhead_core.attention.backend import choose, describe, mask_kind, named
from manyhead_core.attention.backend_rules import (
    BACKEND_RULES,
    CUDA_BATCH_LIMIT,
    EAGER_TRAINING_KEYS,
    LIMITS,
    Call,
)
from manyhead_core.attention.biases import Alibi, KeyBias
from manyhead_core.attention.masks import (
    Causal,
    Dense,
    KeyPadding,
    Mask,
    Prefix,
    SameId,
    Shape,
    SlidingWindow,
)
from manyhead_core.errors import ConfigError

HEADS = 4
MASKS = ("none", "causal", "upper_left", "keys", "window", "dense", "blind", "causal and keys")
EXACT = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2}
sizes = st.sampled_from([1, 2, 3, 7, 16, 33])


def tensors(
    queries: int = 5,
    keys: int = 5,
    *,
    batch: int = 2,
    key_heads: int = HEADS,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, HEADS, queries, width), *2 * [(batch, key_heads, keys, width)]]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def mask_of(name: str, queries: int, keys: int, seed: int = 0) -> Mask | None:
    """Masks of every kind for two batch elements; the second one may see nothing at all."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(2, HEADS, queries, keys, generator=generator) > 0.4
    lengths = torch.tensor([keys, keys // 2])
    blind = allowed.clone()
    blind[1], blind[0, :, 0] = False, False
    return {
        "none": None,
        "causal": Causal(),
        "upper_left": Causal("upper_left"),
        "keys": KeyPadding(lengths),
        "window": SlidingWindow(2, 1),
        "dense": Dense(allowed),
        "blind": Dense(blind),
        "causal and keys": Causal() & KeyPadding(lengths),
    }[name]


def gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Output of a function and the gradients of its inputs under fixed weights."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, max(1, out.numel()), dtype=torch.float64)[: out.numel()]
    loss = (out.double() * weights.view_as(out)).sum()
    return [out.detach(), *torch.autograd.grad(loss, leaves)]


@settings(deadline=None, max_examples=60)
@given(
    queries=sizes,
    keys=sizes,
    key_heads=st.sampled_from([1, 2, 4]),
    mask=st.sampled_from(MASKS),
    bias=st.sampled_from(["none", "tensor", "object"]),
    dtype=st.sampled_from(list(EXACT)),
    seed=st.integers(0, 9),
)
def test_sdpa_is_eager_with_its_gradients(
    queries: int, keys: int, key_heads: int, mask: str, bias: str, dtype: torch.dtype, seed: int
) -> None:
    inputs = tensors(queries, keys, key_heads=key_heads, dtype=dtype, seed=seed)
    added: Any = None
    if bias == "tensor":
        added = torch.randn(HEADS, queries, keys, generator=torch.Generator().manual_seed(seed))
    elif bias == "object":
        added = Alibi(torch.rand(HEADS)) + KeyBias(torch.randn(2, 1, keys))

    def run(backend: str) -> list[Tensor]:
        hidden = mask_of(mask, queries, keys, seed)
        return gradients(
            lambda *x: attend(*x, mask=hidden, bias=added, backend=backend).out, inputs
        )

    limit = EXACT[dtype]
    for one, other in zip(run("sdpa"), run("eager"), strict=True):
        assert one.isfinite().all()
        assert one.dtype == other.dtype == dtype
        torch.testing.assert_close(one, other, rtol=limit * 5, atol=limit * 5)
    torch.testing.assert_close(run("sdpa")[0], run("eager")[0], rtol=limit, atol=limit)


@settings(deadline=None, max_examples=15)
@given(
    queries=sizes,
    keys=sizes,
    key_heads=st.sampled_from([1, 4]),
    mask=st.sampled_from(["none", "causal", "upper_left", "keys", "window", "causal and keys"]),
    seed=st.integers(0, 9),
)
def test_varlen_is_eager_with_its_gradients(
    queries: int, keys: int, key_heads: int, mask: str, seed: int
) -> None:
    inputs = tensors(queries, keys, key_heads=key_heads, seed=seed)

    def run(backend: str) -> list[Tensor]:
        hidden = mask_of(mask, queries, keys, seed)
        return gradients(lambda *x: attend(*x, mask=hidden, backend=backend).out, inputs)

    for one, other in zip(run("varlen"), run("eager"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@settings(deadline=None, max_examples=4)
@given(
    queries=sizes,
    keys=sizes,
    key_heads=st.sampled_from([1, 4]),
    mask=st.sampled_from(MASKS),
    mod=st.booleans(),
)
def test_flex_is_eager(queries: int, keys: int, key_heads: int, mask: str, mod: bool) -> None:
    inputs = tensors(queries, keys, key_heads=key_heads, width=16)
    options: dict[str, Any] = {
        "mask": mask_of(mask, queries, keys),
        "bias": Alibi(torch.rand(HEADS)),
        "score_mod": (lambda s, b, h, q, k: 2.0 * (0.5 * s).tanh() + 0.1 * (h - q % 3))
        if mod
        else None,
    }
    flex, eager = (attend(*inputs, backend=name, **options).out for name in ("flex", "eager"))
    torch.testing.assert_close(flex, eager, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex", "varlen"])
def test_queries_that_see_nothing_give_zeros_on_every_kernel(backend: str) -> None:
    inputs = tensors(6, 6, width=16)
    mask = KeyPadding(torch.tensor([6, 0]))
    out = attend(*inputs, mask=mask, backend=backend).out
    assert out[0].any()
    assert not out[1].any()
    if backend != "flex":
        _, *grads = gradients(lambda *x: attend(*x, mask=mask, backend=backend).out, inputs)
        assert all(grad[0].any() and not grad[1].any() for grad in grads)


@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa"])
def test_a_bias_of_minus_infinity_hides_and_may_hide_everything(backend: str) -> None:
    inputs = tensors()
    bias = torch.zeros(2, 1, 5, 5)
    bias[0, 0, 3], bias[1, :, :, 2] = float("-inf"), float("-inf")
    out, *grads = gradients(lambda *x: attend(*x, bias=bias, backend=backend).out, inputs)
    assert not out[0, :, 3].any()
    assert not grads[0][0, :, 3].any()
    assert not grads[2][1, :, 2].any()
    masked = attend(*inputs, mask=bias == 0, backend=backend).out
    torch.testing.assert_close(out, masked)


@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa", "varlen"])
@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (5, 0), (0, 0)])
def test_empty_inputs_are_legal(backend: str, queries: int, keys: int) -> None:
    if backend == "sdpa" and keys == 0:
        pytest.skip("the fused kernel needs a key")
    inputs = tensors(queries, keys)
    for mask in (None, Causal(), KeyPadding(torch.tensor([keys, 0]))):
        out, *grads = gradients(lambda *x, m=mask: attend(*x, mask=m, backend=backend).out, inputs)
        assert out.shape == (2, HEADS, queries, 8)
        assert not out.any()
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "varlen"])
@pytest.mark.parametrize("align", ["lower_right", "upper_left"])
@pytest.mark.parametrize(("queries", "keys"), [(3, 5), (5, 3), (4, 4)])
def test_causality_follows_its_alignment(backend: str, align: str, queries: int, keys: int) -> None:
    query, key, _ = tensors(queries, keys)
    value = torch.eye(keys).expand(2, HEADS, keys, keys)
    seen = attend(query, key, value, mask=Causal(align), backend=backend).out != 0
    shift = keys - queries if align == "lower_right" else 0
    expected = torch.ones(queries, keys).tril(shift).bool()
    assert torch.equal(seen, expected.expand_as(seen))


def test_square_causality_reaches_the_fused_kernel_as_a_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[dict[str, Any]] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Tensor, **options: Any) -> Tensor:
        taken.append(options)
        return fused(*args, **options)

    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(Causal, "dense", None)  # building it would fail
    for align in ("lower_right", "upper_left"):
        attend(*tensors(), mask=Causal(align), backend="sdpa")
    monkeypatch.undo()
    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", spy)
    attend(*tensors(3, 5), mask=Causal(), backend="sdpa")
    attend(*tensors(), mask=Causal(), bias=torch.zeros(5, 5), backend="sdpa")
    attend(*tensors(), mask=Causal() & Prefix(3), backend="sdpa")
    assert [(x["is_causal"], x["attn_mask"] is None) for x in taken] == [
        (True, True),
        (True, True),
        (False, False),
        (False, False),
        (False, False),
    ]


def test_grouped_heads_are_not_copied_for_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", None)  # copying would fail
    inputs = tensors(40, 40, key_heads=2)
    out = attend(*inputs, mask=Causal(), backend="sdpa").out
    monkeypatch.undo()
    torch.testing.assert_close(out, attend(*inputs, mask=Causal(), backend="eager").out)


@pytest.mark.parametrize("mask", ["none", "causal", "blind"])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_eager_gradients_are_right_to_second_order(mask: str, key_heads: int) -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 2, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(
            2, key_heads, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True
        )
        for _ in range(2)
    )
    bias = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    hidden = mask_of(mask, 3, 4)
    allowed = None if hidden is None else hidden.dense(Shape.of(query, key))
    if allowed is not None and allowed.dim() == 4:
        allowed = allowed[:, :2]
    blind = torch.zeros(3, 1, dtype=torch.bool) if allowed is None else ~allowed.any(-1)[..., None]

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        found = attend(
            *inputs[:3],
            mask=allowed,
            bias=inputs[3],
            score_mod=lambda s, b, h, q, k: s * (1 + 0.1 * k) - 0.2 * h,
            backend="eager",
            return_lse=True,
        )
        assert found.lse is not None
        # Minus infinity has no numerical derivative.
        return found.out, found.lse.masked_fill(blind[..., 0], 0.0)

    assert torch.autograd.gradcheck(run, (query, key, value, bias))
    assert torch.autograd.gradgradcheck(run, (query, key, value, bias))


class Sizes(TorchDispatchMode):
    """Sees every tensor that is made: how large the largest is, and how many large ones live."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large = large
        self.largest = 0
        self.made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
                if x.numel() >= self.large:
                    self.made.append(weakref.ref(x))
        return out

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self.made)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_long_eager_calls_hold_one_chunk_in_both_passes(
    monkeypatch: pytest.MonkeyPatch, dropout_p: float
) -> None:
    inputs = [x.requires_grad_() for x in tensors(64, 64, width=4)]
    learned = torch.randn(HEADS, 1, 64, requires_grad=True)
    chunk = 2 * HEADS * 8 * 64  # of eight queries; all would be eight times as much
    monkeypatch.setattr(scores, "CHUNK_WEIGHTS", chunk)
    with Sizes(chunk) as sizes_:
        out = attend(*inputs, mask=Causal(), bias=learned, dropout_p=dropout_p, backend="eager").out
        assert sizes_.largest == chunk
        assert not sizes_.alive
        out.sum().backward()
    assert sizes_.largest == chunk


def test_chunks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(13, 9, key_heads=2, dtype=torch.float64)
    bias = torch.randn(HEADS, 13, 9, dtype=torch.float64)
    allowed = mask_of("blind", 13, 9)

    def run(*leaves: Tensor) -> Tensor:
        found = attend(
            *leaves[:3],
            mask=allowed,
            bias=leaves[3],
            score_mod=lambda s, b, h, q, k: s * (1 + 0.1 * q) + 0.1 * (h + b - k),
            backend="eager",
            return_lse=True,
        )
        assert found.lse is not None
        return torch.cat([found.out, found.lse[..., None].exp()], -1)

    whole = gradients(run, [*inputs, bias])
    monkeypatch.setattr(scores, "CHUNK_WEIGHTS", 2 * HEADS * 9 * 4)
    for one, other in zip(gradients(run, [*inputs, bias]), whole, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(run(*inputs, bias), whole[0])
    for kind in (Alibi(torch.rand(HEADS)), KeyBias(torch.rand(2, HEADS, 9))):
        chunked = attend(*inputs, mask=SlidingWindow(3, 2), bias=kind, backend="eager").out
        monkeypatch.setattr(scores, "CHUNK_WEIGHTS", 2**26)
        single = attend(*inputs, mask=SlidingWindow(3, 2), bias=kind, backend="eager").out
        monkeypatch.setattr(scores, "CHUNK_WEIGHTS", 2 * HEADS * 9 * 4)
        torch.testing.assert_close(chunked, single)


def test_chunks_replay_their_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "CHUNK_WEIGHTS", 2 * HEADS * 9 * 4)
    query, key, _ = tensors(13, 9)
    value = torch.eye(9).expand(2, HEADS, 9, 9).clone().requires_grad_()
    # With the identity as values the output holds the weights, and so does the gradient.
    out = attend(query, key, value, dropout_p=0.5, backend="eager").out
    weights = torch.rand(out.shape)
    (grad,) = torch.autograd.grad((out * weights).sum(), value)
    assert (out == 0).any()
    torch.testing.assert_close(grad, out.detach().transpose(2, 3) @ weights)


def test_chunks_work_inside_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "CHUNK_WEIGHTS", 2 * HEADS * 9 * 4)
    inputs = tensors(13, 9)

    def run(*leaves: Tensor) -> Tensor:
        return attend(*leaves, backend="eager").out

    plain = gradients(run, inputs)
    nested = gradients(lambda *x: checkpoint(run, *x, use_reentrant=False), inputs)
    for one, other in zip(plain, nested, strict=True):
        torch.testing.assert_close(one, other)


def test_received_attention_holds_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(256, 256)
    row = 2 * HEADS * 256
    monkeypatch.setattr(scores, "CHUNK_WEIGHTS", 4 * row)
    # With `sdpa` the mask itself is needed; square causality is a flag.
    with Sizes(4 * row + 1) as sizes_:
        found = attend(*inputs, mask=Causal(), maps=MapRequest(reduce="received"), backend="sdpa")
    assert sizes_.largest <= 2 * 4 * row
    assert found.maps is not None
    assert found.maps.shape == (2, HEADS, 256)
    torch.testing.assert_close(found.maps.sum(-1), torch.full((2, HEADS), 256.0))


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex", "varlen"])
def test_maps_are_those_of_eager_beside_every_kernel(backend: str) -> None:
    inputs = tensors(6, 6, key_heads=2, width=16)
    mask = Causal() & KeyPadding(torch.tensor([6, 0]))
    found = attend(*inputs, mask=mask, maps=MapRequest(), backend=backend)
    assert found.info.backend == backend
    assert found.maps is not None
    torch.testing.assert_close(found.maps[0].sum(-1), torch.ones(HEADS, 6))
    assert not found.maps[1].any()
    key = inputs[1].repeat_interleave(2, 1)
    expected = (inputs[0] @ key.transpose(2, 3) / 4).masked_fill(
        ~torch.ones(6, 6).tril().bool(), float("-inf")
    )
    torch.testing.assert_close(found.maps[0], expected.softmax(-1)[0], rtol=0, atol=1e-6)
    entropy = attend(*inputs, mask=mask, maps=MapRequest(reduce="entropy"), backend=backend).maps
    assert entropy is not None
    torch.testing.assert_close(entropy, torch.special.entr(found.maps).sum(-1))
    assert not entropy[0, :, 0].any()  # one visible key


def test_maps_follow_the_score_mod_on_picked_rows_and_heads() -> None:
    query, key, value = tensors(6, 7, dtype=torch.float64)
    options: dict[str, Any] = {
        "mask": SlidingWindow(3, 2),
        "bias": Alibi(torch.rand(HEADS, dtype=torch.float64)),
        "score_mod": lambda s, b, h, q, k: s * (1 + 0.1 * q) + 0.1 * h * k - 0.3 * b,
    }

    def maps(**request: Any) -> Tensor:
        asked = MapRequest(dtype=torch.float64, **request)
        found = attend(query, key, value, maps=asked, **options).maps
        assert found is not None
        return found

    whole = maps()
    torch.testing.assert_close(whole @ value, attend(query, key, value, **options).out)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(maps(queries=rows, heads=[3, 1]), whole[:, [3, 1]][:, :, rows])
    torch.testing.assert_close(maps(queries="first", heads=[2]), whole[:, [2], :1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_formats_are_computed_in_float32_on_a_cpu_without_matrix_units(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    formats: list[torch.dtype] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, *args: Tensor, **options: Any) -> Tensor:
        formats.append(query.dtype)
        return fused(query, *args, **options)

    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", spy)
    inputs = tensors(40, 40, dtype=dtype)
    for units in (False, True):
        monkeypatch.setattr(kernels, "HAS_AMX", units)
        found = attend(*inputs)
        assert found.info.backend == "sdpa"
        assert found.out.dtype == dtype
    native = dtype == torch.bfloat16
    assert formats == [torch.float32, dtype if native else torch.float32]


def test_autocast_changes_nothing_but_what_it_casts_before() -> None:
    inputs = tensors(40, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in ("eager", "sdpa"):
            found = attend(*inputs, backend=backend, maps=MapRequest())
            plain = attend(*inputs, backend=backend, maps=MapRequest(), mask=None)
            assert found.out.dtype == torch.float32
            assert torch.equal(found.out, plain.out)
        mixed = attend(inputs[0], inputs[1], inputs[2].bfloat16()).out
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), attend(*inputs).out, rtol=1e-2, atol=1e-2)


# One call for each row of the table, with the kernel that it names.
BF16 = {"dtype": torch.bfloat16, "capability": (9, 0), "device": "cuda"}
FP32 = {"capability": (9, 0), "device": "cuda"}
ROWS: dict[tuple[str, str], tuple[dict[str, Any], str]] = {
    ("cpu", "a score_mod"): ({"keys": 512, "score_mod": True}, "eager"),
    ("cpu", "dropout"): ({"keys": 512, "dropout": True}, "eager"),
    ("cpu", "values of another width than keys"): ({"keys": 512, "value_dim": 32}, "eager"),
    ("cpu", "a bias that learns"): ({"keys": 512, "bias": True, "bias_grad": True}, "eager"),
    ("cpu", "training over at most 32 keys"): ({"keys": 32, "grad": True}, "eager"),
    ("cpu", "16 bits"): ({"keys": 512, "dtype": torch.bfloat16}, "sdpa"),
    ("cpu", "everything else"): ({"keys": 512, "mask": "dense", "bias": True}, "sdpa"),
    ("cuda", "key padding of more than 20% over 512 keys or more"): (
        BF16 | {"keys": 512, "mask": "keys", "padding": 0.3},
        "varlen",
    ),
    ("cuda", "windows or ids over 1024 keys or more"): (
        BF16 | {"queries": 1024, "keys": 1024, "mask": "structured"},
        "flex",
    ),
    ("cuda", "a score_mod"): (FP32 | {"queries": 9, "keys": 9, "score_mod": True}, "flex"),
    ("cuda", "lse of 1024 keys or more"): (
        BF16 | {"queries": 9, "keys": 1024, "lse": True},
        "flex",
    ),
    ("cuda", "a bias that learns, at most 64 keys"): (
        FP32 | {"keys": 49, "bias": True, "bias_grad": True, "grad": True},
        "eager",
    ),
    ("cuda", "inside torch.compile, at most 64 keys"): (
        FP32 | {"keys": 17, "compiling": True},
        "eager",
    ),
    ("cuda", "no mask, or causal with as many keys as queries"): (
        BF16 | {"keys": 300, "mask": "causal"},
        "sdpa",
    ),
    ("cuda", "everything else"): (BF16 | {"keys": 300, "mask": "dense", "bias": True}, "sdpa"),
    ("any", "other devices"): ({"device": "mps", "keys": 9, "dropout": True}, "sdpa"),
}


def test_every_row_of_the_table_is_tested() -> None:
    assert list(ROWS) == [(rule.device, rule.case) for rule in BACKEND_RULES]


@pytest.mark.parametrize("row", BACKEND_RULES, ids=lambda row: f"{row.device}: {row.case}")
def test_a_call_that_a_row_is_for_takes_its_kernel(row: Any) -> None:
    options, kernel = ROWS[row.device, row.case]
    info = choose(Call(**options))
    assert info.backend == kernel
    assert info.why == f"{row.instead_of} {row.why}".strip()
    if row.instead_of:
        assert [x.kernel for x in info.refused] == [row.instead_of]
    else:
        assert not info.refused


@pytest.mark.parametrize(
    ("options", "kernel", "refused"),
    [
        # Just beyond a threshold, or short of it.
        ({"keys": EAGER_TRAINING_KEYS + 1, "grad": True}, "sdpa", []),
        ({"keys": EAGER_TRAINING_KEYS}, "sdpa", []),
        ({"keys": 0}, "eager", ["sdpa needs at least one key"]),
        ({"keys": 512, "lse": True}, "eager", ["sdpa returns no lse"]),
        (BF16 | {"keys": 511, "mask": "keys", "padding": 0.9}, "sdpa", []),
        (BF16 | {"keys": 512, "mask": "keys", "padding": 0.2}, "sdpa", []),
        (
            FP32 | {"keys": 512, "mask": "keys", "padding": 0.3},
            "sdpa",
            ["varlen takes 16 bits only"],
        ),
        (
            BF16 | {"keys": 512, "mask": "keys", "padding": 0.3, "capability": (7, 5)},
            "sdpa",
            ["varlen needs a CUDA device of compute capability 8.0"],
        ),
        (
            BF16 | {"queries": 2048, "keys": 2048, "mask": "structured", "dropout": True},
            "sdpa",
            ["flex has no dropout"],
        ),
        (BF16 | {"queries": 1023, "keys": 1023, "mask": "structured"}, "sdpa", []),
        (
            BF16 | {"queries": 2048, "keys": 2048, "mask": "structured", "head_dim": 8},
            "sdpa",
            ["flex needs heads of width 16 or more"],
        ),
        (FP32 | {"keys": 300}, "sdpa", ["flash takes 16 bits only"]),
        (
            BF16 | {"keys": 300, "head_dim": 512, "value_dim": 512},
            "sdpa",
            ["flash is for heads up to 256"],
        ),
        (
            FP32 | {"keys": 300, "bias": True, "bias_grad": True},
            "eager",
            ["sdpa gives no gradient to a bias alone on CUDA"],
        ),
        (FP32 | {"keys": 300, "bias": True, "bias_grad": True, "grad": True}, "sdpa", []),
        (
            FP32
            | {"keys": 300, "bias": True, "bias_grad": True, "grad": True, "deterministic": True},
            "eager",
            ["sdpa sums a bias gradient in random order on CUDA"],
        ),
        (
            BF16 | {"keys": 300, "batch": CUDA_BATCH_LIMIT + 1},
            "eager",
            [f"flash takes at most {CUDA_BATCH_LIMIT} batch elements on CUDA"],
        ),
        (
            FP32 | {"queries": 9, "keys": 9, "score_mod": True, "exporting": True},
            "eager",
            ["flex is no part of an exported graph"],
        ),
    ],
)
def test_refused_kernels_are_named_with_the_reason(
    options: dict[str, Any], kernel: str, refused: list[str]
) -> None:
    info = choose(Call(**options))
    assert info.backend == kernel
    assert [f"{x.kernel} {x.reason}" for x in info.refused][: len(refused) or None] == refused


def test_a_remedy_is_named_where_something_can_be_gained_only() -> None:
    long, short = (choose(Call(keys=keys, dropout=True)).refused[0].remedy for keys in (512, 64))
    assert long
    assert not short


def test_reasons_read_as_sentences() -> None:
    for limit in LIMITS:
        assert f"{limit.kernel} {limit.reason}".isprintable()
        assert not limit.reason.endswith(".")
    known = {"eager", "sdpa", "flex", "varlen", "flash", "efficient"}
    assert {rule.kernel for rule in BACKEND_RULES} <= known
    assert {rule.device for rule in BACKEND_RULES} == {"cpu", "cuda", "any"}


@pytest.mark.parametrize(
    ("backend", "options", "reason"),
    [
        ("sdpa", {"score_mod": True}, "sdpa takes no score_mod"),
        ("flex", {"head_dim": 8}, "flex needs heads of width 16 or more"),
        ("flex", {"grad": True}, "flex has no gradients on CPU"),
        ("flex", {"dtype": torch.float64}, "flex takes no float64"),
        ("varlen", {"packable": False}, "varlen takes KeyPadding, Causal and SlidingWindow only"),
        ("varlen", {"bias": True}, "varlen takes no bias and no score_mod"),
        ("varlen", {"dropout": True}, "varlen has no dropout"),
    ],
)
def test_a_kernel_asked_for_by_name_says_what_it_cannot_do(
    backend: str, options: dict[str, Any], reason: str
) -> None:
    able = Call(queries=9, keys=9)
    assert named(able, backend).backend == backend
    with pytest.raises(ConfigError, match=f"{reason}.*use auto or eager"):
        named(replace(able, **options), backend)


def test_calls_are_described_as_they_are() -> None:
    query, key, value = tensors(6, 6, width=16)
    learned = torch.zeros(6, 6, requires_grad=True)

    def of(**options: Any) -> Call:
        given: dict[str, Any] = {
            "mask": None,
            "bias": None,
            "score_mod": None,
            "dropout_p": 0.0,
            "return_lse": False,
        }
        return describe(query, key, value, **given | options)

    plain = of()
    assert plain == Call(batch=2, queries=6, keys=6, head_dim=16, value_dim=16)
    assert of(bias=learned) == replace(plain, bias=True, bias_grad=True)
    with torch.no_grad():
        assert of(bias=learned) == replace(plain, bias=True)
    assert of(mask=Causal()) == replace(plain, mask="causal")
    ids = SameId(torch.zeros(6))
    assert of(mask=ids) == replace(plain, mask="structured", packable=False)
    assert of(dropout_p=0.1, return_lse=True) == replace(plain, dropout=True, lse=True)


def test_masks_are_sorted_by_what_a_kernel_can_do_with_them() -> None:
    square = Shape(2, 4, 6, 6, torch.device("cpu"))
    long = replace(square, keys=9)
    keys = KeyPadding(torch.tensor([3, 6]))
    assert mask_kind(None, square) == "none"
    assert mask_kind(torch.ones(6, 6).bool(), square) == "dense"
    assert mask_kind(Causal(), square) == "causal"
    assert mask_kind(Causal(), long) == "structured"
    assert mask_kind(keys, square) == "keys"
    assert mask_kind(Causal() & keys, square) == "structured"
    assert mask_kind(SlidingWindow(1, 1), square) == "structured"
    assert mask_kind(Prefix(2), square) == "dense"
    assert mask_kind(Dense(torch.ones(6, 6).bool()), square) == "dense"


def test_explanation_is_what_runs() -> None:
    inputs = tensors(96, 96, width=16)
    cases: list[dict[str, Any]] = [
        {},
        {"mask": Causal()},
        {"dropout_p": 0.2},
        {"return_lse": True},
        {"bias": torch.zeros(96, 96, requires_grad=True)},
        {"score_mod": lambda s, b, h, q, k: s},
        {"backend": "flex"},
    ]
    for options in cases:
        assert explain_backend(*inputs, **options) == attend(*inputs, **options).info


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_calls_have_no_graph_break_and_the_same_kernel(dynamic: bool) -> None:
    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        first = attend(query, key, value, mask=Causal(), maps=MapRequest(queries="first"))
        second = attend(query, key, value, mask=SlidingWindow(2, 2), return_lse=True)
        assert first.info.backend == "sdpa"
        assert first.maps is not None
        return first.out + second.out, first.maps, second.lse

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (40, 50, 60):
        inputs = tensors(length, length, key_heads=2)
        for one, other in zip(compiled(*inputs), run(*inputs), strict=True):
            torch.testing.assert_close(one, other)
