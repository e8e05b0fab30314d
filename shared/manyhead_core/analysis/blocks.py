"""The layer that each attention site belongs to, with its input and its output."""

from __future__ import annotations

import torch
from torch import nn

from manyhead_core.analysis.outputs import watch_outputs
from manyhead_core.analysis.run import Study, evaluating, pick_sites, walk
from manyhead_core.attention.capture import attention_sites, gate_heads


def block_names(model: nn.Module) -> dict[str, str]:
    """The layer that each attention site belongs to: site name to module name.

    It is the outermost module around the site that holds no other site, so that its input and
    output are those of the residual stream where there is one. Containers and the model itself
    do not count.
    """
    sites = list(attention_sites(model))
    modules = {n.replace("_orig_mod.", ""): m for n, m in model.named_modules()}
    found = {}
    for site in sites:
        found[site] = site
        parts = site.split(".")
        for length in range(len(parts) - 1, 0, -1):
            name = ".".join(parts[:length])
            inside = [other for other in sites if other == name or other.startswith(f"{name}.")]
            if len(inside) > 1:
                break
            if not isinstance(modules[name], nn.ModuleList | nn.ModuleDict):
                found[site] = name
    return found


def called_blocks(study: Study) -> dict[int, str]:
    """The layer around each site by layer number, as `block_names` has it.

    Where a forward pass does not call that module, it is the next one around it that is called.
    Sites without any are left out.

    Args:
        study: Its first batch is run once.
    """
    blocks = block_names(study.model)
    names = [n.replace("_orig_mod.", "") for n, _ in study.model.named_modules() if n]
    # Compiled models run uncompiled, as the hooks need, among gates.
    with (
        torch.no_grad(),
        evaluating(study.model),
        gate_heads(study.model, {}),
        watch_outputs(study.model, names) as seen,
    ):
        study.forward(next(walk(study)).batch)
    found = {}
    for layer, site in pick_sites(study.model).items():
        name = blocks[site]
        while name and (name not in seen or name == site):
            name = name.rpartition(".")[0]
        if name:
            found[layer] = name
    return found
