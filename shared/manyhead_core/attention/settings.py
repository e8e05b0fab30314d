"""Settings of the whole process: slow kernels as errors, safe kernels of torch, and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from manyhead_core.errors import ConfigError

if TYPE_CHECKING:
    from manyhead_core.attention.backend import AttendInfo


@dataclass
class _State:
    # Plain attributes: a compiled graph reads them as guarded constants.
    strict: bool = False
    exports: int = 0
    cudnn: bool | None = None


_state = _State()


def configure(*, strict: bool) -> None:
    """Set whether a call of `attend` fails where a faster kernel was refused.

    Args:
        strict: True raises when the user could change the reason: dropout, a number format, a
            bias that learns over many keys. Calls for which the slower kernel is the right choice,
            short ones above all, pass.
    """
    _state.strict = strict


def configure_sdp(mode: Literal["safe", "default"]) -> None:
    """Choose the kernels that `scaled_dot_product_attention` may take, in the whole process.

    cuDNN's backward gave NaN for the gradient of the queries where a mask is given and the number
    of tokens leaves 64 when divided by 128 (H100 and H200, torch 2.11 to 2.13). `attend` avoids it
    in its own calls; this protects the calls of other code.

    Args:
        mode: `safe` turns cuDNN's kernel off; `default` goes back to what was set before.

    Raises:
        ConfigError: The mode is unknown.
    """
    if mode not in ("safe", "default"):
        raise ConfigError(f"mode: {mode!r} is unknown; use safe or default")
    if mode == "safe":
        if _state.cudnn is None:
            _state.cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(False)
    elif _state.cudnn is not None:
        torch.backends.cuda.enable_cudnn_sdp(_state.cudnn)
        _state.cudnn = None


@contextmanager
def export_mode() -> Iterator[None]:
    """Make `attend` take the forms that an exported graph can hold, inside a `with` block.

    Only the dense kernels run, and a query without a visible key is set to zero explicitly: the
    graph format has no such rule for its own attention. `torch.export` and the ONNX exporter built
    on it are recognised without this; other tracers need it.
    """
    _state.exports += 1
    try:
        yield
    finally:
        _state.exports -= 1


def exporting() -> bool:
    """Whether a graph is being exported."""
    return _state.exports > 0 or torch.compiler.is_exporting()


def enforce(info: AttendInfo) -> None:
    """Under `configure(strict=True)`, refuse a slower kernel that the user could avoid.

    Raises:
        ConfigError: Names the slow kernel, the faster one, the reason and the remedy.
    """
    if not _state.strict:
        return
    for refused in info.refused:
        if refused.remedy:
            raise ConfigError(
                f"attention: {info.backend} runs instead of {refused.kernel}, which "
                f"{refused.reason}; {refused.remedy}, or call configure(strict=False)"
            )
