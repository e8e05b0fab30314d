"""The work on a batch that the cases time: a gradient, a training step, a score."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Optimizer

from benchmarks.harness import Setting
from manyhead.autoint.model import AutoInt, AutoIntConfig
from manyhead.autoint.rows import Rows


def build(features: int, fields: int, setting: Setting, backend: str = "auto") -> AutoInt:
    """AutoInt in its default sizes on the device, with the named attention kernel."""
    torch.manual_seed(0)
    net = AutoInt(AutoIntConfig(num_features=features, num_fields=fields))
    for layer in net.layers:
        layer.attend.backend = backend
    return net.to(setting.device)


def can_compile(setting: Setting) -> bool:
    """Whether `torch.compile` finds what it needs: on a CPU that is a C++ compiler."""
    return setting.device.type == "cuda" or shutil.which("g++") is not None


def compiled(net: nn.Module) -> Callable[..., object]:
    """The network compiled for the shapes it meets first.

    What was compiled before is forgotten: the compiler gives up after eight versions of a function
    and would guess sizes from those it has seen.
    """
    torch.compiler.reset()
    return torch.compile(net, dynamic=False)


def loss(net: Callable[..., object], rows: Rows) -> Tensor:
    """Mean cross-entropy of a batch."""
    logits = net(rows.index, rows.value, rows.lists).logits  # type: ignore[attr-defined]
    return binary_cross_entropy_with_logits(logits.float(), rows.label)


def autocast(setting: Setting, enabled: bool) -> AbstractContextManager[object]:
    """bfloat16 autocast on the device, or nothing."""
    return torch.autocast(setting.device.type, torch.bfloat16, enabled=enabled)


def gradient(net: Callable[..., object], owner: nn.Module, rows: Rows) -> None:
    """Forward and backward; gradients start anew, as they do in training."""
    owner.zero_grad(set_to_none=True)
    loss(net, rows).backward()


def train(net: Callable[..., object], optimiser: Optimizer, rows: Rows) -> None:
    """One training step."""
    optimiser.zero_grad(set_to_none=True)
    loss(net, rows).backward()
    optimiser.step()


def train_table(table: Callable[..., Tensor], optimiser: Optimizer, rows: Rows) -> None:
    """One step of the embedding table alone, without the layers that follow it."""
    optimiser.zero_grad(set_to_none=True)
    table(rows.index, rows.value).square().sum().backward()
    optimiser.step()
