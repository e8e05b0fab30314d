"""Limits of torch's attention: what torch does, seen on a CPU, and that `attend` is right anyway.

A test that fails because torch has improved names code that may be removed.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from manyhead_core.attention import Attend, attend, explain_backend, kernels
from manyhead_core.attention.backend import choose
from manyhead_core.attention.backend_rules import Call
from manyhead_core.attention.masks import Causal, Dense, KeyPadding
from manyhead_core.errors import ConfigError

FUSED, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH


def tensors(queries: int = 4, keys: int = 4, width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (queries, keys, keys)
    return [torch.randn(2, 2, size, width, generator=generator) for size in sizes]


@pytest.mark.parametrize("kernel", [FUSED, MATH])
def test_finfo_min_instead_of_minus_infinity_averages_a_fully_masked_row(
    kernel: SDPBackend,
) -> None:
    query, key, value = tensors()
    hidden = torch.zeros(4, 4)
    hidden[1] = torch.finfo(torch.float32).min
    with sdpa_kernel(kernel):
        wrong = F.scaled_dot_product_attention(query, key, value, attn_mask=hidden)
    torch.testing.assert_close(wrong[:, :, 1], value.mean(2))
    for backend in ("eager", "sdpa", "flex"):
        out = attend(query, key, value, mask=hidden == 0, backend=backend).out
        assert not out[:, :, 1].any()
        torch.testing.assert_close(out[:, :, 0], wrong[:, :, 0])


def test_is_causal_with_attn_mask_means_two_things() -> None:
    query, key, value = tensors()
    allowed = torch.tensor([True, True, True, False]).expand(4, 4)
    with sdpa_kernel(MATH), pytest.raises(RuntimeError, match="attn_mask should not be set"):
        F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=True)
    with sdpa_kernel(FUSED):
        both = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=True)
    for backend in ("eager", "sdpa", "flex"):
        out = attend(query, key, value, mask=Causal() & Dense(allowed), backend=backend).out
        torch.testing.assert_close(out, both)


def test_is_causal_aligns_the_first_query_where_decoding_needs_the_last() -> None:
    query, key, value = tensors(2, 4)
    torch_ = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    for backend in ("eager", "sdpa", "flex"):
        first = attend(query, key, value, mask=Causal("upper_left"), backend=backend).out
        torch.testing.assert_close(first, torch_)
        last = attend(query, key, value, mask=Causal(), backend=backend).out
        torch.testing.assert_close(last[:, :, 1:], attend(query, key, value).out[:, :, 1:])


def test_dropout_of_the_kernel_acts_in_evaluation_too() -> None:
    query, key, value = tensors()
    clean = attend(query, key, value).out
    assert not torch.allclose(
        F.scaled_dot_product_attention(query, key, value, dropout_p=0.5), clean
    )
    assert torch.equal(Attend(dropout=0.5).eval()(query, key, value).out, clean)


def test_multihead_attention_gives_nan_for_fully_masked_rows() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x, hidden = torch.randn(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool)
    hidden[1] = True  # the other way round: True hides
    out, _ = layer(x, x, x, key_padding_mask=hidden, need_weights=True)
    assert out[1].isnan().all()
    with torch.no_grad():
        out, _ = layer.eval()(x, x, x, key_padding_mask=hidden, need_weights=False)
    assert out[1].isnan().all()
    heads = x.view(2, 4, 2, 4).transpose(1, 2)
    ours = attend(heads, heads, heads, mask=KeyPadding(~hidden)).out
    assert ours.isfinite().all()
    assert not ours[1].any()


# torch itself says that nested tensors are a prototype.
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_nested_tensors_take_no_mask() -> None:
    parts = [torch.randn(3, 2, 16), torch.randn(5, 2, 16)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    allowed = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="Masks are not yet supported"):
        F.scaled_dot_product_attention(nested, nested, nested, attn_mask=allowed)
    with pytest.raises(NotImplementedError, match="NestedTensor"):
        flex_attention(nested, nested, nested)
    with pytest.raises(ConfigError, match="nested tensors are not taken; pad them"):
        attend(nested, nested, nested)
    padded = nn.utils.rnn.pad_sequence(parts, batch_first=True).transpose(1, 2)
    for backend in ("auto", "varlen"):
        mask = KeyPadding(torch.tensor([3, 5]))
        out = attend(padded, padded, padded, mask=mask, backend=backend).out
        for number, part in enumerate(parts):
            alone = part.transpose(0, 1)[None]
            torch.testing.assert_close(
                out[number, :, : len(part)], attend(alone, alone, alone).out[0]
            )


def test_varlen_has_no_cpu_kernel() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    tokens = torch.randn(8, 2, 16, dtype=torch.bfloat16)
    starts = torch.tensor([0, 3, 8], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="CPU"):
        varlen.varlen_attn(tokens, tokens, tokens, starts, starts, 5, 5)
    query, key, value = tensors()
    mask = KeyPadding(torch.tensor([1, 4]))
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype) for x in (query, key, value)]
        reference = attend(*inputs, mask=mask, backend="varlen").out
        torch.testing.assert_close(reference, attend(*inputs, mask=mask, backend="eager").out)
    assert explain_backend(query, key, value, mask=mask).backend != "varlen"


def test_varlen_and_flex_have_no_dropout_and_varlen_no_other_mask() -> None:
    query, key, value = tensors()
    for backend in ("flex", "varlen"):
        with pytest.raises(ConfigError, match=f"{backend} has no dropout"):
            attend(query, key, value, dropout_p=0.1, backend=backend)
    with pytest.raises(ConfigError, match="varlen takes KeyPadding, Causal and SlidingWindow only"):
        attend(query, key, value, mask=torch.ones(4, 4).bool(), backend="varlen")


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
def test_flex_has_no_backward_on_cpu() -> None:
    leaves = [x.requires_grad_() for x in tensors()]
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex_attention(*leaves)
    with pytest.raises(ConfigError, match="flex has no gradients on CPU"):
        attend(*leaves, backend="flex")
    with torch.no_grad():
        out = attend(*leaves, backend="flex").out
    torch.testing.assert_close(out, attend(*leaves).out.detach())
    trained = attend(*leaves, score_mod=lambda s, b, h, q, k: s * 2)
    assert trained.info.backend == "eager"
    trained.out.sum().backward()
    assert leaves[0].grad is not None


@pytest.mark.parametrize("width", [4, 8])
def test_heads_below_width_16_are_not_for_flex(width: int) -> None:
    query, key, value = tensors(width=width)
    with pytest.raises(ConfigError, match="flex needs heads of width 16 or more"):
        attend(query, key, value, backend="flex")
    found = attend(query, key, value, score_mod=lambda s, b, h, q, k: s + (k - q))
    distance = torch.arange(4.0)[None] - torch.arange(4.0)[:, None]
    torch.testing.assert_close(found.out, attend(query, key, value, bias=distance).out)


def test_flash_takes_no_mask_no_bias_and_16_bits_only() -> None:
    plain = Call(device="cuda", dtype=torch.bfloat16, keys=300, queries=300)
    assert "flash" in choose(plain).why
    for other in ({"mask": "dense"}, {"bias": True}, {"dtype": torch.float32}):
        info = choose(Call(**{"device": "cuda", "dtype": torch.bfloat16, "keys": 300} | other))
        assert info.backend == "sdpa"
        assert "flash" not in info.why


def ops(*args: Tensor, **options: Any) -> set[str]:
    """Forms of the fused function that run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        F.scaled_dot_product_attention(*args, **options)
    return {
        event.key.rpartition("_attention")[2] or event.key
        for event in seen.key_averages()
        if "_scaled_dot_product" in event.key
    }


def test_fused_cpu_kernel_gives_way_to_dropout_bias_gradients_and_other_value_widths() -> None:
    query, key, value = tensors()
    learned = torch.zeros(4, 4, requires_grad=True)
    assert ops(query, key, value) == {"_for_cpu"}
    assert ops(query, key, value, attn_mask=learned.detach()) == {"_for_cpu"}
    assert ops(query, key, value, attn_mask=torch.ones(1, 2, 4, 4).bool()) == {"_for_cpu"}
    for given, options in (
        ((query, key, value), {"dropout_p": 0.1}),
        ((query, key, value), {"attn_mask": learned}),
        ((query, key, value), {"attn_mask": torch.ones(2, 4, 4).bool()}),
        ((query, key, value[..., :8]), {}),
    ):
        assert ops(*given, **options) == {"_math"}
    assert explain_backend(query, key, value, dropout_p=0.1).backend == "eager"
    assert explain_backend(query, key, value, bias=learned).backend == "eager"
    assert explain_backend(query, key, value[..., :8]).backend == "eager"


def test_cudnn_is_left_out_where_gradients_and_a_mask_come_together() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)

    def cudnn(device: str, hidden: Tensor | None) -> bool:
        query: Any = SimpleNamespace(device=torch.device(device))
        with kernels.allowed_kernels(query, hidden):
            assert torch.backends.cuda.flash_sdp_enabled()
            assert torch.backends.cuda.mem_efficient_sdp_enabled()
            return torch.backends.cuda.cudnn_sdp_enabled()

    before = torch.backends.cuda.cudnn_sdp_enabled()
    assert not cudnn("cuda", mask)
    assert cudnn("cuda", None) == cudnn("cpu", mask) == before
    with torch.no_grad():
        assert cudnn("cuda", mask) == before
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


class Fused(nn.Module):
    """torch's function, as an exporter sees it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None])


class Ours(nn.Module):
    """`attend`, as an exporter sees it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        return attend(query, key, value, mask=KeyPadding(valid)).out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_export_loses_the_zeros_of_fully_masked_rows(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    given = (*tensors(), torch.arange(4) < torch.tensor([[0], [3]]))

    def run(layer: nn.Module) -> Tensor:
        path = str(tmp_path / "layer.onnx")
        torch.onnx.export(layer, given, path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path)
        names = [x.name for x in session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    fused, ours = run(Fused()), run(Ours())
    assert not Fused()(*given)[0].any()
    assert fused[0].isnan().any() or fused[0].any()
    assert not ours[0].any()
    torch.testing.assert_close(ours[1], fused[1], rtol=0, atol=1e-5)
