"""Settings of the process: slow kernels as errors, torch's own kernels, export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from manyhead_core.attention import attend, configure, configure_sdp, export_mode
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.settings import exporting
from manyhead_core.errors import ConfigError


@pytest.fixture
def strict() -> Iterator[None]:
    configure(strict=True)
    yield
    configure(strict=False)


def tensors(keys: int = 96, width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(keys)
    return [torch.randn(2, 2, keys, width, generator=generator) for _ in range(3)]


@pytest.mark.usefixtures("strict")
def test_strict_names_slow_kernel_fast_kernel_reason_and_remedy() -> None:
    query, key, value = tensors()
    with pytest.raises(ConfigError) as caught:
        attend(query, key, value, dropout_p=0.1)
    assert str(caught.value) == (
        "attention: eager runs instead of sdpa, which falls back to its unfused form with dropout "
        "on CPU; set the dropout of the attention weights to 0, or call configure(strict=False)"
    )
    learned = torch.zeros(2, 96, 96, requires_grad=True)
    with pytest.raises(ConfigError, match="a bias gradient on CPU; freeze the bias"):
        attend(query, key, value, bias=learned)
    with pytest.raises(ConfigError, match="another value width"):
        attend(query, key, value[..., :8])


@pytest.mark.usefixtures("strict")
def test_strict_passes_what_is_right_already() -> None:
    query, key, value = tensors()
    attend(query, key, value, mask=Causal())
    attend(query, key, value, return_lse=True)  # nothing the user could change but the wish
    attend(query, key, value, backend="eager", dropout_p=0.1)  # asked for by name
    short = [x[:, :, :20].requires_grad_() for x in (query, key, value)]
    assert attend(*short, dropout_p=0.1).info.backend == "eager"
    learned = torch.zeros(2, 20, 20, requires_grad=True)
    assert attend(*short, bias=learned).info.backend == "eager"


def test_slow_kernels_pass_by_default() -> None:
    assert attend(*tensors(), dropout_p=0.1).info.backend == "eager"


def test_safe_turns_cudnn_off_and_default_restores_it() -> None:
    configure_sdp("default")  # a fit of another test in this process has set it
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        configure_sdp("safe")
        configure_sdp("safe")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        configure_sdp("default")
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    configure_sdp("default")
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with pytest.raises(ConfigError, match="'fast' is unknown; use safe or default"):
        configure_sdp("fast")  # type: ignore[arg-type]


def test_export_mode_ends_with_its_block_and_nests() -> None:
    assert not exporting()
    with export_mode(), export_mode():
        assert exporting()
    assert not exporting()
    with pytest.raises(ZeroDivisionError), export_mode():
        1 / 0  # noqa: B018
    assert not exporting()


def test_export_mode_changes_no_result() -> None:
    query, key, value = tensors(7)
    bias = torch.randn(2, 7, 7)
    valid = torch.arange(7) < torch.tensor([[0], [4]])
    for mask, added in ((None, None), (Causal(), None), (KeyPadding(valid), bias)):
        for backend in ("auto", "sdpa", "eager"):
            plain = attend(query, key, value, mask=mask, bias=added, backend=backend).out
            with export_mode():
                mode = attend(query, key, value, mask=mask, bias=added, backend=backend).out
            torch.testing.assert_close(mode, plain)
    with export_mode(), pytest.raises(ConfigError, match="flex is no part of an exported graph"):
        attend(query, key, value, backend="flex")


class Layer(nn.Module):
    """Attention with key padding, as an exporter sees it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        return attend(query, key, value, mask=KeyPadding(valid)).out


def padded() -> tuple[Tensor, ...]:
    """The first batch element has no real key."""
    return (*tensors(6), torch.arange(6) < torch.tensor([[0], [4]]))


def test_exported_graph_keeps_zeros_and_a_free_batch() -> None:
    given = padded()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Layer(), given, dynamic_shapes=[{0: batch}] * 4)
    more = tuple(torch.cat([x, x[:1]]) for x in given)
    out = program.module()(*more)
    torch.testing.assert_close(out, Layer()(*more))
    assert not out[0].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_graph_gives_zeros_to_queries_that_see_nothing(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    given = padded()
    path = str(tmp_path / "layer.onnx")
    names = ["query", "key", "value", "valid"]
    torch.onnx.export(Layer(), given, path, input_names=names, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    feed = {name: x.numpy() for name, x in zip(names, given, strict=True)}
    out = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(out, Layer()(*given), rtol=0, atol=1e-5)
    assert not out[0].any()
