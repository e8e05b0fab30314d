"""Weights of an earlier training as the start of another one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from manyhead_core.errors import WeightsError
from manyhead_core.hub.artefact import Artefact

BEST = "checkpoints/best.ckpt"
# What may differ between trainings on different targets or with different side inputs.
OWN = ("head.", "encoder.amplitude_proj.", "threshold")


def load_initial(net: nn.Module, source: Path) -> list[str]:
    """Take over all weights but those of a head of another shape, of adapters and side inputs.

    Args:
        net: Network to fill.
        source: Weights folder, checkpoint of a run, or run folder, whose best checkpoint counts.

    Returns:
        Names of the tensors that keep their fresh values.

    Raises:
        WeightsError: There are no such weights, or the trunk differs.
    """
    given, own = _read(source), net.state_dict()
    taken = {n: x for n, x in given.items() if n in own and own[n].shape == x.shape}
    fresh = sorted(own.keys() - taken.keys())
    for name in fresh:
        if not (name.startswith(OWN) or ".lora_" in name):
            state = f"is {tuple(given[name].shape)}" if name in given else "is missing"
            raise WeightsError(
                f"init: {source}: {name} {state}, the network has {tuple(own[name].shape)}; set "
                "net to the sizes of these weights"
            )
    lost = [n for n in given.keys() - taken.keys() if not n.startswith(OWN)]
    if lost:
        raise WeightsError(
            f"init: {source}: the network has no place for {sorted(lost)[0]}; merge adapters "
            "first, or set net.lora_rank"
        )
    if "head.weight" in fresh:
        # A threshold belongs to the head that it was chosen for.
        taken.pop("threshold", None)
    net.load_state_dict(own | taken)
    return fresh


def _read(source: Path) -> dict[str, Tensor]:
    if (best := source / BEST).is_file():
        source = best
    if source.is_dir():
        if (source / BEST).parent.is_dir():
            raise WeightsError(f"init: run folder {source} has no {BEST} yet; pass other weights")
        return dict(Artefact.read(source, "mvpformer").weights)
    if not source.is_file():
        raise WeightsError(
            f"init: {source} does not exist; pass a weights folder, a checkpoint or a run folder "
            "(null where a run is resumed)"
        )
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as err:  # bytes that are no pickle break the reader in ways of their own
        raise WeightsError(f"init: {source} is damaged or no checkpoint; pass another") from err
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(
            f"init: {source} is no checkpoint of a run; convert foreign weights with import"
        )
    return {name.removeprefix("net."): tensor for name, tensor in state.items()}
