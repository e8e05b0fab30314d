"""Networks by name: MVPFormer and the baselines in one harness. Plain strings, resolved late."""

from __future__ import annotations

import pkgutil
from typing import Any, Literal

from torch import nn

from manyhead.mvpformer.model import MVPFormerConfig
from manyhead_core.app import find

Network = Literal["mvpformer", "band_energy", "cnn"]
NETWORKS: dict[str, str] = {
    "mvpformer": "manyhead.mvpformer.model:MVPFormer",
    "band_energy": "manyhead.mvpformer.baselines.band_energy:BandEnergy",
    "cnn": "manyhead.mvpformer.baselines.cnn:CNN",
}


def build_network(name: str, config: MVPFormerConfig) -> nn.Module:
    """A network over windows.

    Args:
        name: Name in `NETWORKS`.
        config: Sizes and head.

    Raises:
        UserError: There is no such network.
    """
    kind: Any = pkgutil.resolve_name(NETWORKS[find(name, NETWORKS, "network")])
    built: nn.Module = kind(config)
    return built
