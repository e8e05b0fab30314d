"""AutoInt and AutoInt+ against files of the TensorFlow implementation."""

from __future__ import annotations

import re

import torch
from comparison import Reference, shaped_like
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from manyhead.autoint import AutoInt, AutoIntConfig
from manyhead.autoint.checkpoint import from_official, to_official
from manyhead_core.training.optimiser import build_optimiser

CASES = ("autoint",)
OPTIMISERS = {"adam": "adam_tf", "adagrad": "adagrad", "gd": "sgd"}


def replay(reference: Reference) -> None:
    """Outputs, gradients and the weights after optimiser steps."""
    config = architecture(reference.config)
    net = AutoInt(config)
    net.load_state_dict(from_official(reference.group("weights"), config))
    net.eval()
    inputs = reference.group("input")
    lists = tuple(
        (inputs[name], inputs[name.replace("_index", "_value")])
        for name in sorted(inputs)
        if name.endswith("_index") and name != "feat_index"
    )
    rows = (inputs["feat_index"], inputs["feat_value"], lists)
    label = inputs["label"].reshape(-1).float()
    compare_outputs(reference, net, rows, label)
    gradients = compare_gradients(reference, net, rows, label)
    compare_steps(reference, net, rows, label, gradients)
    reference.assert_complete("output", "grad", *after(reference))


def architecture(header: dict) -> AutoIntConfig:
    """Our config from the header of the file."""
    return AutoIntConfig(
        num_features=header["num_features"],
        num_fields=header["num_fields"],
        dim=header["embedding_dim"],
        widths=tuple(header["block_shape"]),
        num_heads=header["num_heads"],
        residual=header["use_residual"],
        tower=tuple(header.get("deep_layers") or ()),
    )


def compare_outputs(reference: Reference, net: AutoInt, rows: tuple, label: Tensor) -> None:
    """Everything in `output/` that belongs to the forward pass."""
    with torch.no_grad():
        embedded = net.embedding(*rows)
        logits = net(*rows).logits
        found = {
            "field_embeddings": embedded,
            "final_block": net.features(*rows),
            "logit": logits,
            "prob": logits.sigmoid(),
            "loss": loss_of(reference, net, logits, label),
            "logit_attention": net.output(net.features(*rows).flatten(1)),
        }
        if net.tower is not None:
            found["logit_dnn"] = net.tower(embedded.flatten(1))
        for number, block in enumerate(net.attention_maps(*rows)):
            found[f"attention_block{number}"] = block
    wanted = reference.group("output")
    for name, ours in shaped_like(found, wanted).items():
        if name in wanted:
            reference.output(name, ours)


def compare_gradients(
    reference: Reference, net: AutoInt, rows: tuple, label: Tensor
) -> dict[str, Tensor]:
    """Gradients of the mean log loss; returns them by official name."""
    binary_cross_entropy_with_logits(net(*rows).logits, label).backward()
    ours = {name: parameter.grad for name, parameter in net.named_parameters()}
    gradients = shaped_like(to_official(ours, net.config), reference.group("weights"))
    for name in reference.group("grad"):
        reference.gradient(name, gradients[name])
    net.zero_grad()
    return gradients


def compare_steps(
    reference: Reference, net: AutoInt, rows: tuple, label: Tensor, gradients: dict[str, Tensor]
) -> None:
    """Losses before, and weights after, steps on the same batch."""
    header = reference.config
    assert not any(header.get("dropout") or ()), "random dropout cannot be replayed"
    name = OPTIMISERS[header.get("optimizer", "adam")]
    decay = {"tower": header.get("l2_reg") or 0.0}
    optimiser = build_optimiser(name, net, header["learning_rate"], decay)
    for group in optimiser.param_groups if "adam" in header else ():
        adam = header["adam"]
        group.update(betas=(adam["beta1"], adam["beta2"]), eps=adam["eps"])
    wanted = {int(group.removeprefix("after")): group for group in after(reference)}
    losses = reference.group("output").get("adam_losses", torch.empty(0))
    found = []
    for step in range(1, max([len(losses), *wanted]) + 1):
        optimiser.zero_grad()
        logits = net(*rows).logits
        found.append(loss_of(reference, net, logits, label).detach().reshape(()))
        binary_cross_entropy_with_logits(logits, label).backward()
        optimiser.step()
        if step in wanted:
            compare_weights(reference, net, wanted[step], gradients)
    if len(losses):
        reference.output("adam_losses", torch.stack(found)[: len(losses)])


def compare_weights(
    reference: Reference, net: AutoInt, group: str, gradients: dict[str, Tensor]
) -> None:
    """Weights after some steps."""
    state = to_official(net.state_dict(), net.config)
    ours = shaped_like(state, reference.group("weights"))
    for name in reference.group(group):
        reference.after(group, name, ours[name], gradients[name])


def loss_of(reference: Reference, net: AutoInt, logits: Tensor, label: Tensor) -> Tensor:
    """Mean log loss plus the penalty on the tower's weights, as the reference reports it."""
    loss = binary_cross_entropy_with_logits(logits, label)
    factor = reference.config.get("l2_reg") or 0.0
    if factor and net.tower is not None:
        weights = [layer.weight for layer in net.tower.hidden]
        loss = loss + factor * sum(weight.square().sum() / 2 for weight in weights)
    return loss.reshape(1)


def after(reference: Reference) -> list[str]:
    """Groups of weights after some number of steps, such as `after3`."""
    groups = {name.split("/")[0] for name in reference.tensors}
    return sorted(group for group in groups if re.fullmatch(r"after\d+", group))
