"""Mixture-of-head attention against files of the reference implementation."""

from __future__ import annotations

import torch
from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention.mixers.moh import MixtureOfHeads


def replay(reference: Reference) -> None:
    """Output, and in training the load-balance loss and gradients of the whole loss."""
    config, inputs = reference.config, reference.group("input")
    net = build(reference)
    found = net(inputs["x"])
    reference.output("y", found.y.detach())
    wanted = reference.group("output")
    if "aux_loss" in wanted:
        reference.output("aux_loss", found.aux["balance"].detach())
    if "loss" in wanted:
        loss = (found.y - inputs["target"]).square().mean()
        if config.get("aux_weight") and found.aux:
            loss = loss + config["aux_weight"] * found.aux["balance"]
        compare_loss(reference, net, loss)
    reference.assert_complete("output", "grad")


def build(reference: Reference) -> MixtureOfHeads:
    """The layer of the header with the weights of the file."""
    config, weights = reference.config, reference.group("weights")
    net = MixtureOfHeads(
        config["dim"],
        config["num_heads"],
        shared_heads=config["shared_heads"],
        routed_heads=config["routed_heads"],
        head_dim=config.get("head_dim"),
        qkv_bias=config.get("qkv_bias", True),
        qk_norm=config.get("qk_norm", False),
    )
    if config["shared_heads"] == 1:
        # A softmax over one shared head is 1 whatever these are.
        weights.pop("wg_1.weight", torch.empty(0))
    net.load_state_dict(weights)
    return net.train(config.get("train", False))


MECHANISMS = {"moh": replay}
