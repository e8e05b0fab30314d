"""A small instance of every app's model; a new app without a row here fails the suite."""

from __future__ import annotations

from typing import Any

# Config fields of a network that is quick to run and uses every optional part.
SMALL: dict[str, dict[str, Any]] = {
    "autoint": {
        "num_features": 40,
        "num_fields": 5,
        "dim": 8,
        "widths": (8, 12),
        "num_heads": 2,
        "tower": (6,),
        "tower_norm": True,
        "tower_dropout": 0.0,
        "linear_term": True,
    },
}

# Parameters that get no gradient, each with the reason.
WITHOUT_GRADIENT: dict[str, dict[str, str]] = {"autoint": {}}
