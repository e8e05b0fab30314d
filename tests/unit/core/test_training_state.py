"""Generators in the checkpoint, settings of a resumed optimiser, losses that are no numbers."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from manyhead_core.errors import UserError
from manyhead_core.training.finite import EVERY_N_STEPS, FiniteLoss
from manyhead_core.training.flags_win import take_settings
from manyhead_core.training.random_state import capture, restore


def draw():
    return random.random(), np.random.random(), np.random.normal(), torch.rand(3).tolist()  # noqa: NPY002


def test_generators_go_back_to_where_they_were(tmp_path):
    draw()
    torch.save(capture(), tmp_path / "state")
    expected = [draw(), draw()]
    restore(torch.load(tmp_path / "state", weights_only=True))
    assert [draw(), draw()] == expected


def sgd(lr, momentum, scheduled=False):
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr, momentum=momentum)
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimiser, step_size=1)
    return optimiser


def test_new_settings_win_over_restored_ones():
    restored = sgd(0.1, 0.9)
    take_settings(restored, sgd(0.5, 0.0))
    assert (restored.param_groups[0]["lr"], restored.param_groups[0]["momentum"]) == (0.5, 0.0)


def test_a_scheduled_rate_keeps_its_place():
    restored = sgd(0.4, 0.9, scheduled=True)
    restored.param_groups[0]["lr"] = 0.1  # a quarter of the way
    take_settings(restored, sgd(0.8, 0.9, scheduled=True))
    group = restored.param_groups[0]
    assert (group["initial_lr"], group["lr"]) == (0.8, pytest.approx(0.2))


def loop(step):
    return SimpleNamespace(global_step=step, current_epoch=1)


MODULE = SimpleNamespace(hparams={"lr": 0.25})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_loss_is_named_with_step_and_rate(value):
    watch = FiniteLoss()
    watch.on_before_backward(loop(3), MODULE, torch.tensor(1e30))
    with pytest.raises(UserError, match=r"at step 4 \(epoch 2\) with model.lr 0.25; lower"):
        watch.on_before_backward(loop(4), MODULE, torch.tensor(value))


def test_on_an_accelerator_the_loss_is_looked_at_rarely_but_before_every_checkpoint(monkeypatch):
    monkeypatch.setattr(FiniteLoss, "_at_once", staticmethod(lambda loss: False))
    bad = torch.tensor(float("nan"))
    watch = FiniteLoss()
    watch.on_before_backward(loop(1), MODULE, bad)
    watch.on_before_backward(loop(2), MODULE, torch.tensor(0.5))
    with pytest.raises(UserError, match="not finite"):
        watch.on_save_checkpoint(loop(2), MODULE, {})
    with pytest.raises(UserError, match="not finite"):
        watch.on_before_backward(loop(EVERY_N_STEPS), MODULE, torch.tensor(0.5))
