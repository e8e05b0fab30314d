"""`sparsifiner`: against plain loops, and full attention where everything is kept."""

import json
import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from manyhead_core.attention import MapRequest
from manyhead_core.attention.masks import Causal, KeyPadding
from manyhead_core.attention.mixer import UnsupportedPattern
from manyhead_core.attention.mixers.softmax import Attention
from manyhead_core.attention.mixers.sparsifiner import Sparsifiner, reconstruction_loss
from manyhead_core.errors import ConfigError

PARITY = Path(__file__).parents[2] / "parity"
OPTIONS = {
    "num_tokens": 13,
    "reduce_tokens": 2,
    "reduce_channels": 2,
    "keep_rate": 0.3,
    "basis_threshold": 0.1,
    "basis_topk": 3,
}


def mixer(**options) -> Sparsifiner:
    torch.manual_seed(0)
    made = Sparsifiner(12, 3, **OPTIONS | options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def tokens(count: int = 13) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, count, 12, generator=generator, dtype=torch.float64)


def formula(x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One sample with the settings above, row by row."""
    heads, count, width = 3, 13, 4
    qkv = x @ state["qkv.weight"].T + state["qkv.bias"]
    down = {n: state[f"mask_predictor.proj_c_{n}.weight"] for n in "qk"}
    bias = {n: state[f"mask_predictor.proj_c_{n}.bias"] for n in "qk"}
    basis = state["mask_predictor.proj_back_n"].abs()
    basis = torch.where(basis <= 0.1, torch.zeros_like(basis), basis)
    approx = torch.zeros(heads, count - 1, count, dtype=x.dtype)
    mask = torch.zeros(heads, count, count, dtype=torch.bool)
    attn = torch.zeros(heads, count, count, dtype=x.dtype)
    out = torch.zeros(count, 12, dtype=x.dtype)
    for h in range(heads):
        q, k, v = (qkv[:, 12 * i + width * h : 12 * i + width * (h + 1)] for i in range(3))
        small = (k @ down["k"].T + bias["k"]).T @ state["mask_predictor.proj_n"]
        for n in range(count):
            chosen = torch.arange(count)
            if n > 0:
                share = ((q[n] @ down["q"].T + bias["q"]) @ small / heads**0.5).softmax(0)
                for basis_map in share.argsort(descending=True)[:3]:
                    approx[h, n - 1] += share[basis_map] * basis[:, basis_map]
                chosen = approx[h, n - 1].argsort(descending=True)[: math.ceil(0.3 * count)]
            mask[h, n, chosen] = True
            weights = (k[chosen] @ q[n] / width**0.5).softmax(0)
            attn[h, n, chosen] = weights
            out[n, width * h : width * (h + 1)] = weights @ v[chosen]
    y = out @ state["proj.weight"].T + state["proj.bias"]
    return {"y": y, "attn": attn, "attn_mask": mask, "approx_attn": approx}


def test_is_the_formula() -> None:
    made, x = mixer(), tokens()
    found = made(x, maps=MapRequest(dtype=torch.float64))
    approximate, allowed = made.mask_predictor.sparse(*made.project(x)[:2])
    for b in range(2):
        expected = formula(x[b], made.state_dict())
        torch.testing.assert_close(found.y[b], expected["y"])
        torch.testing.assert_close(found.maps[b], expected["attn"])
        torch.testing.assert_close(approximate[b], expected["approx_attn"])
        assert torch.equal(allowed[b], expected["attn_mask"])


def test_keeping_everything_is_full_attention() -> None:
    made, x = mixer(keep_rate=1.0), tokens()
    plain = Attention(12, 3).double()
    state = made.state_dict().items()
    plain.load_state_dict({k: v for k, v in state if not k.startswith("mask_predictor.")})
    torch.testing.assert_close(made(x).y, plain(x).y, atol=0, rtol=1e-12)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5])
def test_class_token_sees_all_and_others_their_share(keep: float) -> None:
    made, x = mixer(keep_rate=keep), tokens()
    allowed = made.mask_predictor.sparse(*made.project(x)[:2])[1]
    assert allowed[:, :, 0].all()
    assert (allowed[:, :, 1:].sum(-1) == math.ceil(keep * 13)).all()


def test_mask_passes_no_gradient_to_the_predictor() -> None:
    made, x = mixer().train(), tokens()
    found = made(x)
    found.y.square().sum().backward()
    assert found.aux == {}
    for name, parameter in made.named_parameters():
        if name.startswith("mask_predictor."):
            assert parameter.grad is None, name
        else:
            assert torch.isfinite(parameter.grad).all(), name


def test_first_stage_is_full_attention_and_trains_the_predictor_only() -> None:
    made, x = mixer(sparse=False).train(), tokens()
    found = made(x, maps=MapRequest(dtype=torch.float64))
    full = mixer(keep_rate=1.0)
    torch.testing.assert_close(found.y, full(x).y)
    smooth = made.mask_predictor.smooth(*made.project(x)[:2])
    expected = 0.01 * (smooth - found.maps[:, :, 1:]).square().sum()
    torch.testing.assert_close(found.aux["reconstruction"], expected)
    found.aux["reconstruction"].backward()
    for name, parameter in made.named_parameters():
        learns = parameter.grad is not None and parameter.grad.abs().max() > 0
        assert learns == name.startswith("mask_predictor."), name


def test_loss_is_zero_for_the_teacher_itself() -> None:
    maps = torch.rand(1, 2, 5, 5)
    assert reconstruction_loss(maps[:, :, 1:], maps) == 0


def test_choice_is_the_same_under_autocast() -> None:
    made, x = mixer().float(), tokens().float()
    query, key, _ = made.project(x)
    expected = made.mask_predictor.sparse(query, key)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.mask_predictor.sparse(query, key)[1], expected)


def test_one_token() -> None:
    made = mixer(num_tokens=1, reduce_tokens=1)
    assert torch.isfinite(made(tokens(1)).y).all()


def test_undeclared_uses_and_wrong_sizes_are_refused() -> None:
    made, x = mixer(), tokens()
    with pytest.raises(UnsupportedPattern):
        made(x, x)
    with pytest.raises(UnsupportedPattern):
        made(x, mask=Causal())
    with pytest.raises(UnsupportedPattern):
        made(x, mask=KeyPadding(torch.tensor([3, 4])))
    with pytest.raises(ConfigError, match="num_tokens=13, got 12"):
        made(x[:, 1:])
    with pytest.raises(ConfigError, match="keep_rate"):
        mixer(keep_rate=0.0)
    with pytest.raises(ConfigError, match="leave nothing"):
        mixer(num_tokens=4, reduce_tokens=5)


def test_replays_a_reference_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {k: v.requires_grad_() for k, v in mixer().state_dict().items()}
    x = tokens()
    rows = [formula(one, state) for one in x]
    found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    loss = (found["y"] - 1).square().mean()
    names = ["qkv.weight", "proj.bias"]
    gradients = torch.autograd.grad(loss, [state[name] for name in names])
    groups = {"input/x": x, "input/target": torch.ones_like(x), "output/loss": loss.detach()}
    groups |= {f"output/{name}": tensor.detach() for name, tensor in found.items()}
    groups |= {f"grad/{name}": tensor for name, tensor in zip(names, gradients, strict=True)}
    groups |= {f"weights/{name}": tensor.detach() for name, tensor in state.items()}
    header = {"case": "sparsifiner", "dim": 12, "num_heads": 3, "num_tokens": 13}
    header |= {"reduce_n_factor": 2, "reduce_c_factor": 2, "attn_keep_rate": 0.3}
    header |= {"basis_threshold": 0.1, "basis_coef_topk": 3, "qkv_bias": True}
    file = tmp_path / "sparsifiner.safetensors"
    tensors = {name: tensor.float().contiguous() for name, tensor in groups.items()}
    save_file(tensors, file, {"config": json.dumps(header)})
    monkeypatch.syspath_prepend(str(PARITY))
    replay = import_module("core_sparsifiner").MECHANISMS["sparsifiner"]
    replay(import_module("comparison").Reference(file))
