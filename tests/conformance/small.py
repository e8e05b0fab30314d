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
    "acmil": {
        "feature_dim": 12,
        "dim": 8,
        "hidden_dim": 6,
        "num_branches": 2,
        "num_masked": 2,
        "num_residual": 1,
    },
    "mvpformer": {
        "segment_samples": 64,
        "dim": 16,
        "num_layers": 2,
        "num_heads": 4,
        "num_key_heads": 2,
        "hidden_dim": 24,
        "max_segments": 6,
        "max_channels": 5,
        "window": 1,
        "amplitude": "rms",
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}

# Parameters that get no gradient, each with the reason.
WITHOUT_GRADIENT: dict[str, dict[str, str]] = {
    "autoint": {},
    "acmil": {
        f"branch_heads.{branch}.{part}": "classifies a branch, not the slide; the branches' loss "
        "trains it"
        for branch in range(2)
        for part in ("weight", "bias")
    },
    "mvpformer": {},
}
