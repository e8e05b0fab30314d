"""ACMIL and the baselines against files of the authors' code."""

from __future__ import annotations

from typing import Any

import torch
from comparison import Reference
from torch import Tensor, nn

from manyhead.acmil.baselines.clam import CLAM
from manyhead.acmil.baselines.dsmil import DSMIL
from manyhead.acmil.checkpoint import Official, from_official, recognise, to_official
from manyhead.acmil.model import ACMILConfig

CASES = (
    "acmil_ga", "acmil_mha", "abmil", "mha", "clam_sb", "clam_mb", "dsmil", "transmil", "training",
    "preprocess",
)  # fmt: skip
LOSSES = {"slide": "slide", "sub": "branch", "div": "diversity"}


def replay(reference: Reference) -> None:
    """Dispatch on the case."""
    case = reference.config["case"]
    if case == "preprocess":
        from acmil_preprocess import replay_preprocess

        replay_preprocess(reference)
    elif case == "training":
        replay_training(reference)
    elif case.startswith("acmil"):
        replay_acmil(reference)
    else:
        replay_baseline(reference)


def replay_acmil(reference: Reference) -> None:
    """Evaluation, and training with and without masking."""
    net, official = network(reference)
    features, label = inputs(reference)
    evaluated = net.eval()(features)
    reference.output("eval_slide_logits", evaluated.logits)
    reference.output("eval_sub_logits", evaluated.branch_logits[0])
    reference.output("eval_attn_logits", evaluated.attention.permute(2, 1, 0))
    net.train()
    for group, masked in (("nomask", 0), ("mask", reference.config["n_masked_patch"])):
        object.__setattr__(net.config, "num_masked", masked)
        draws = reference.tensors["input/mask_uniform"].flatten(0, -2)[None]
        found = net(features, mask_draws=draws)
        reference.output(f"{group}_slide_logits", found.logits)
        reference.output(f"{group}_sub_logits", found.branch_logits[0])
        maps = found.attention.permute(2, 1, 0)
        reference.output(f"{group}_attn_logits", maps)
        if masked:
            kept = reference.tensors["input/keep_mask"].bool()
            assert torch.equal(maps.isfinite().view(kept.shape), kept)
        losses = net.losses(found, label, cu_seqlens=whole(features))
        total = sum(losses.values())
        for theirs, ours in LOSSES.items():
            reference.output(f"{group}_loss_{theirs}", losses[ours])
        reference.output(f"{group}_loss_total", total)
        compare_gradients(reference, net, official, total, "grad" if masked else "grad_nomask")
    reference.assert_complete("output", "grad", "grad_nomask")


def replay_baseline(reference: Reference) -> None:
    """Evaluation and one training loss with its gradients."""
    net, official = network(reference)
    features, label = inputs(reference)
    cu_seqlens = whole(features)
    found = net.eval()(features)
    dsmil = official.network == "dsmil"
    outputs = {
        "eval_logits": found.logits,
        "train_logits": found.logits,
        "eval_attn_logits": None if found.attention is None else found.attention[..., 0].T,
        "eval_inst_logits": found.instance_logits,
        "eval_bag_logits": found.branch_logits[:, 1] if dsmil else None,
        "train_max_logits": found.branch_logits[:, 0] if dsmil else None,
        "eval_prob": found.logits.softmax(-1),
    }
    losses = net.losses(found, label, cu_seqlens=cu_seqlens)
    total = sum(losses.values())
    weight = reference.config.get("bag_weight")
    if weight:
        outputs["train_loss_bag"] = losses["slide"] / weight
        outputs["train_loss_inst"] = losses["instance"] / (1 - weight)
    outputs["train_loss_total"] = total
    for name in reference.group("output"):
        reference.output(name, outputs[name])
    compare_gradients(reference, net, official, total, "grad")
    reference.assert_complete("output", "grad")


def replay_training(reference: Reference) -> None:
    """Losses, learning rates and final weights of a short training."""
    from manyhead.acmil.schedule import learning_rate

    net, official = network(reference)
    config = reference.config
    optimiser = torch.optim.AdamW(net.parameters(), lr=config["lr"], weight_decay=config["wd"])
    bags = [reference.tensors[f"input/bag_{n}"] for n in range(len(config["bag_sizes"]))]
    labels = reference.tensors["input/labels"]
    rates, losses = [], []
    gradients = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    net.train()
    for step in range(config["train_epoch"] * len(bags)):
        rate = learning_rate(
            step / len(bags),
            peak=config["lr"],
            floor=config["min_lr"],
            warmup=config["warmup_epoch"],
            epochs=config["train_epoch"],
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        number = step % len(bags)
        found = net(bags[number])
        terms = net.losses(found, labels[number : number + 1], cu_seqlens=whole(bags[number]))
        total = sum(terms.values())
        optimiser.zero_grad()
        total.backward()
        for name, parameter in net.named_parameters():
            gradients[name] = torch.maximum(gradients[name], parameter.grad.abs())
        optimiser.step()
        rates.append(rate)
        losses.append(torch.stack([terms[name] for name in LOSSES.values()] + [total]))
    reference.output("lr", torch.tensor(rates))
    reference.output("losses", torch.stack(losses).detach())
    net.eval()
    reference.output("final_prob", torch.cat([net(bag).logits.softmax(-1) for bag in bags]))
    largest = to_official(gradients, official.table)
    for name, ours in to_official(net.state_dict(), official.table).items():
        # Adam turns a gradient of pure rounding into a full step.
        reference.after("output/final", name, ours, largest[name])
    reference.assert_complete("output")


def network(reference: Reference) -> tuple[Any, Official]:
    """The network of a file, from its header and its shapes, with its weights."""
    weights, header = reference.group("weights"), reference.config
    found = recognise(weights)
    options = {"dropout": 0.0, "num_masked": header.get("n_masked_patch", 0)}
    options["mask_share"] = header.get("mask_drop", 0.0)
    fields = {name: getattr(found.config, name) for name in ACMILConfig.__dataclass_fields__}
    found = Official(found.table, found.network, ACMILConfig(**fields | options), found.options)
    if found.network.startswith("clam"):
        maps = 1 if found.network == "clam_sb" else found.config.num_outputs
        net: nn.Module = CLAM(
            found.config,
            maps,
            num_sampled=header["k_sample"],
            bag_weight=header["bag_weight"],
            mode="reference",
        )
    elif found.network == "dsmil":
        net = DSMIL(found.config, nonlinear=header["nonlinear"])
    else:
        net = found.build()
    net.load_state_dict(from_official(weights, found))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net, found


def inputs(reference: Reference) -> tuple[Tensor, Tensor]:
    """Features of the one bag, and its label."""
    return reference.tensors["input/features"][0], reference.tensors["input/label"]


def whole(features: Tensor) -> Tensor:
    """Bounds of the one bag."""
    return torch.tensor([0, len(features)])


def compare_gradients(
    reference: Reference, net: nn.Module, official: Official, loss: Tensor, group: str
) -> None:
    """Gradients by official name; a parameter without one has none in the file."""
    net.zero_grad()
    loss.backward()
    present = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    ours = to_official(present, official.table)
    for name in reference.group(group):
        reference.gradient(name, ours[name], group)
