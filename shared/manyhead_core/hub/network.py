"""What a network in use holds, and where it runs."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from manyhead_core.errors import ConfigError


def weights_digest(net: nn.Module, about: bytes = b"") -> str:
    """SHA-256 of the weights in hexadecimal, whatever file they came from.

    Args:
        net: On any device; the same weights have the same digest in float32 and shorter.
        about: What else decides the results, such as a calibration.
    """
    digest = hashlib.sha256(about)
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def check_device(name: str, known: str = "cpu or cuda") -> torch.device:
    """The device of a name, refused where it is not there.

    Args:
        name: `cpu`, `cuda` or `cuda:1`.
        known: What the option takes, for the message.

    Raises:
        ConfigError: There is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ConfigError(f"device: {name!r} is unknown; use {known}") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device} is not there; use cpu")
    try:
        # Torch knows more kinds of devices than it was built for.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as err:
        raise ConfigError(f"device: {device} is not there; use cpu") from err
    return device
