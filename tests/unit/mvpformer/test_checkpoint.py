"""Published checkpoints in both directions, and the commands around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_model import build, signal

from manyhead.__main__ import main
from manyhead.mvpformer import MVPFormer
from manyhead.mvpformer.checkpoint import from_official, to_official
from manyhead_core.errors import WeightsError

HEAD_DIM = 8


def official(net: MVPFormer, prefix: str = "genie.") -> dict[str, torch.Tensor]:
    """As released: with everything that nothing uses."""
    found = to_official(net, prefix)
    for layer in range(net.config.num_layers):
        place = f"{prefix}h.{layer}"
        found[f"{place}.ln_2.weight"] = torch.ones(net.config.dim)
        found[f"{place}.attn.masked_bias"] = torch.tensor(-1e4)
        found[f"{place}.attn.time_bias"] = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    return found | {"seizure_embeddings": torch.zeros(3, 64)}


def rehosted(net: MVPFormer) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in to_official(net, "").items():
        name = name.replace("encoder.", "patch_embed.").replace("head.head", "final_layer")
        renamed[f"blocks.{name[2:]}" if name.startswith("h.") else name] = tensor
    return renamed


@pytest.mark.parametrize("lora_on", ["value", "key_value"])
def test_round_trip_is_bit_equal(lora_on: str) -> None:
    net = build(lora_rank=3, lora_on=lora_on)
    again, found = from_official(official(net), head_dim=HEAD_DIM)
    assert again.config.lora_on == lora_on
    assert len(found.ignored) == 7
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.config.segment_samples == 64


def test_rehosted_layout_gives_the_same() -> None:
    net = build()
    again, _ = from_official(rehosted(net), head_dim=HEAD_DIM)
    x = signal(1, 3, 2, 64)
    assert torch.equal(again(x).logits, net(x).logits)


def test_names_that_do_not_fit_are_reported() -> None:
    net = build()
    given = official(net)
    with pytest.raises(WeightsError, match=r"names unknown: strange\.weight"):
        from_official(given | {"strange.weight": torch.zeros(1)}, head_dim=HEAD_DIM)
    del given["genie.h.1.mlp.up_proj.weight"]
    with pytest.raises(WeightsError, match=r"missing layers\.1\.mlp\.up\.weight"):
        from_official(given, head_dim=HEAD_DIM)
    with pytest.raises(WeightsError, match="head_dim: unknown for width 32"):
        from_official(official(net))


def test_adapters_need_their_base() -> None:
    net = build(lora_rank=2)
    alone = to_official(net, "genie.", adapters_alone=True)
    assert len(alone) == 2 * 4 + 1
    with pytest.raises(WeightsError, match="holds no trunk"):
        from_official(alone, head_dim=HEAD_DIM)
    base = official(build())
    with pytest.raises(WeightsError, match="has none"):
        from_official(base, {"head.head.weight": net.head.weight}, head_dim=HEAD_DIM)
    with pytest.raises(WeightsError, match="belongs to a layer that the base does not have"):
        from_official(official(build(num_layers=1)), alone, head_dim=HEAD_DIM)
    again, _ = from_official(base, alone, head_dim=HEAD_DIM)
    assert again.config.lora_rank == 2


def test_import_merge_and_adapters_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = build(lora_rank=2, target="classes")
    base = {n: x for n, x in official(net).items() if ".lora_" not in n}
    torch.save(base, tmp_path / "base.pt")
    torch.save(to_official(net, "genie.", adapters_alone=True), tmp_path / "swec.pt")
    words = ["mvpformer", "import", str(tmp_path / "base.pt"), str(tmp_path / "weights")]
    words += ["--head_dim", "8", "--adapters", str(tmp_path / "swec.pt")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "7 without a use" in told
    assert "adapters of rank 2 on queries and values (not merged)" in told
    x = signal(1, 3, 2, 64)
    given = MVPFormer.from_pretrained(tmp_path / "weights")
    assert torch.equal(given(x).logits, net(x).logits)
    assert main(["mvpformer", "merge", str(tmp_path / "weights"), str(tmp_path / "merged")]) == 0
    merged = MVPFormer.from_pretrained(tmp_path / "merged")
    assert torch.allclose(merged(x).logits, net(x).logits, atol=1e-5)
    words = ["mvpformer", "adapters", str(tmp_path / "weights"), str(tmp_path / "own.safetensors")]
    assert main([*words, "--layout", "official"]) == 0
    alone = load_file(tmp_path / "own.safetensors")
    assert alone.keys() == to_official(net, adapters_alone=True).keys()
    capsys.readouterr()
    assert main(words) == 2
    assert "exists; choose another name" in capsys.readouterr().err
    words = ["mvpformer", "merge", str(tmp_path / "merged"), str(tmp_path / "again")]
    assert main(words) == 2
    assert "has no adapters" in capsys.readouterr().err
