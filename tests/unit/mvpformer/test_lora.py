"""Adapters: fresh ones change nothing, merged ones compute the same, frozen parts stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_model import build, signal

from manyhead.mvpformer import MVPFormer
from manyhead.mvpformer.initial import load_initial
from manyhead.mvpformer.lora import adapter_state, adapters, freeze_base
from manyhead_core.errors import WeightsError


def test_a_fresh_adapter_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = build()
    config = type(plain.config)(**(vars(plain.config) | {"lora_rank": 4}))
    adapted = MVPFormer(config)
    fresh = load_initial_from(adapted, plain)
    assert all("lora_" in name for name in fresh)
    x = signal(2, 4, 3, 64)
    assert torch.allclose(adapted.eval()(x).logits, plain(x).logits, atol=1e-6)


def load_initial_from(net: MVPFormer, source: MVPFormer) -> list[str]:
    own = net.state_dict()
    given = source.state_dict()
    net.load_state_dict(own | given)
    return sorted(own.keys() - given.keys())


@pytest.mark.parametrize("on", ["value", "key_value"])
def test_merged_weights_compute_the_same_however_often(on: str) -> None:
    net = build(lora_rank=3, lora_on=on)
    x = signal(2, 5, 3, 64)
    merged = net.merged()
    assert not adapters(merged)
    assert torch.allclose(merged(x).logits, net(x).logits, atol=1e-5)
    assert torch.equal(net.merged()(x).logits, merged(x).logits)
    assert torch.equal(merged.merged()(x).logits, merged(x).logits)


def test_keys_are_left_alone_by_an_adapter_of_values() -> None:
    net = build(lora_rank=3)
    layer = net.layers[0].attention.kv_proj
    half = layer.out_features // 2
    change = layer.merged_weight() - layer.weight
    assert change[:half].abs().max() == 0
    assert change[half:].abs().max() > 0


def test_only_adapters_and_head_learn() -> None:
    net = build(lora_rank=3).train()
    names = set(freeze_base(net))
    net(signal(2, 4, 3, 64)).logits.square().sum().backward()
    reached = {n for n, p in net.named_parameters() if p.grad is not None}
    assert reached == names
    assert all("lora_" in n or n == "head.weight" for n in names)
    assert set(adapter_state(net)) == names


def test_weights_to_start_from(tmp_path: Path) -> None:
    source = build(target="next_token")
    source.save_pretrained(tmp_path / "base")
    net = build(seed=5, lora_rank=2)
    fresh = load_initial(net, tmp_path / "base")
    assert [n for n in fresh if "lora_" not in n] == ["head.weight"]
    assert torch.equal(net.positions.step, source.positions.step)
    with pytest.raises(WeightsError, match=r"encoder\.norm\.weight is"):
        load_initial(build(segment_samples=128), tmp_path / "base")
    with pytest.raises(WeightsError, match="does not exist; pass"):
        load_initial(net, tmp_path / "nothing")
    build(lora_rank=2).save_pretrained(tmp_path / "adapted")
    with pytest.raises(WeightsError, match="merge adapters first"):
        load_initial(build(), tmp_path / "adapted")
