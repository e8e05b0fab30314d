"""Relative convolutional attention against files of the reference implementation."""

from __future__ import annotations

from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Causal
from manyhead_core.attention.mixers.rcmha import RelativeConvAttention


def replay(reference: Reference) -> None:
    """Output, weights, and gradients where the file has them; the file puts time first."""
    inputs = {name: x.transpose(0, 1) for name, x in reference.group("input").items()}
    net = build(reference)
    mask = Causal() if "causal" in reference.config.get("mask", "causal") else None
    found = net(inputs["x"], mask=mask, memory=inputs.get("mem"), maps=MapRequest())
    reference.output("y", found.y.detach().transpose(0, 1))
    wanted = reference.group("output")
    if "attn" in wanted:
        reference.output("attn", found.maps.permute(2, 3, 0, 1))
    if "loss" in wanted:
        compare_loss(reference, net, (found.y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


def build(reference: Reference) -> RelativeConvAttention:
    """The layer of the header with the weights of the file."""
    config = reference.config
    net = RelativeConvAttention(
        config["dim"],
        config["num_heads"],
        memory_length=config.get("mem_len", 0),
        max_distance=config["max_rel"],
        kernel_size=config.get("conv_kernel", 3),
    )
    net.load_state_dict(reference.group("weights"))
    return net.eval()


MECHANISMS = {"rcmha": replay}
