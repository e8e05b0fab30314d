"""Dynamic-mask attention against files of the reference implementation."""

from __future__ import annotations

import torch
from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal
from manyhead_core.attention.mixers.dynamic_mask import DynamicMaskAttention


def replay(reference: Reference) -> None:
    """Output, weights, and gradients where the file has them."""
    inputs = reference.group("input")
    net = build(reference)
    mask = Causal() if reference.config.get("causal") else None
    found = net(inputs["x"], mask=mask, maps=MapRequest())
    reference.output("y", found.y.detach())
    wanted = reference.group("output")
    if "attn" in wanted:
        reference.output("attn", found.maps)
    if "loss" in wanted:
        compare_loss(reference, net, (found.y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


def build(reference: Reference) -> DynamicMaskAttention:
    """The layer of the header with the weights of the file."""
    config, weights = reference.config, reference.group("weights")
    net = DynamicMaskAttention(
        config["dim"],
        config["num_heads"],
        keep_window=config["keep_window"],
        num_key_heads=config.get("num_kv_heads"),
        head_dim=config.get("head_dim"),
        rope_theta=config.get("rope_theta"),
        bias=config.get("bias", False),
    )
    if config.get("bias"):
        weights.setdefault("dt_proj.bias", torch.zeros(config["num_heads"]))
    net.load_state_dict(weights)
    return net.eval()


MECHANISMS = {"dynamic_mask": replay}
