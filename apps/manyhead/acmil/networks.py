"""Networks by name: ACMIL and the baselines in the same harness. Plain strings, resolved late."""

from __future__ import annotations

import pkgutil
from typing import Any, Literal

from torch import nn

from manyhead.acmil.model import ACMILConfig
from manyhead_core.app import find

Network = Literal["acmil", "abmil", "mha", "clam_sb", "clam_mb", "dsmil", "transmil", "mean", "max"]
_PLACE = "manyhead.acmil.baselines"
NETWORKS: dict[str, str] = {
    "acmil": "manyhead.acmil.model:ACMIL",
    "abmil": f"{_PLACE}.attention_pooling:ABMIL",
    "mha": f"{_PLACE}.attention_pooling:MHA",
    "clam_sb": f"{_PLACE}.clam:CLAMSB",
    "clam_mb": f"{_PLACE}.clam:CLAMMB",
    "dsmil": f"{_PLACE}.dsmil:DSMIL",
    "transmil": f"{_PLACE}.transmil:TransMIL",
    "mean": f"{_PLACE}.pooling:MeanPooling",
    "max": f"{_PLACE}.pooling:MaxPooling",
}


def build_network(network: str, config: ACMILConfig) -> nn.Module:
    """A network over bags.

    Args:
        network: Name in `NETWORKS`.
        config: Sizes and target.

    Raises:
        UserError: There is no such network.
    """
    kind: Any = pkgutil.resolve_name(NETWORKS[find(network, NETWORKS, "network")])
    built: nn.Module = kind(config)
    return built
