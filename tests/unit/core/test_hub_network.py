"""The digest of weights, and devices that are not there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyhead_core.errors import ConfigError
from manyhead_core.hub.network import check_device, weights_digest


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_the_digest_follows_the_weights_alone() -> None:
    assert weights_digest(net()) == weights_digest(net().eval().requires_grad_(False))
    assert weights_digest(net()) != weights_digest(net(1))
    half = net().bfloat16()
    assert weights_digest(half) == weights_digest(half.float())


def test_names_and_what_else_decides_count() -> None:
    with_bias, renamed = nn.Linear(2, 3), nn.Module()
    renamed.first, renamed.second = with_bias.weight, with_bias.bias
    assert weights_digest(with_bias) != weights_digest(renamed)
    assert weights_digest(with_bias) != weights_digest(with_bias, b"calibrated")


def test_the_digest_stays_what_it_was() -> None:
    plain = nn.Linear(1, 1)
    nn.init.constant_(plain.weight, 0.5)
    nn.init.zeros_(plain.bias)
    # Folders of earlier versions are gone on with by this number.
    assert weights_digest(plain).startswith("de9487ad17c9c821")


def test_devices_are_checked_before_they_are_used() -> None:
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device: 'gpu' is unknown; use auto or cpu"):
        check_device("gpu", "auto or cpu")
    with pytest.raises(ConfigError, match="device: cuda:99 is not there; use cpu"):
        check_device("cuda:99")


def test_a_kind_of_device_that_torch_was_not_built_for_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device: hpu is not there; use cpu"):
        check_device("hpu")
