"""Task-specific attention models on one attention core; the import loads nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(app: str, weights: str | Path, **overrides: Any) -> Any:
    """Build the model of an app from a weights folder or a hub id, in evaluation mode.

    Args:
        app: Name of the app, as on the command line.
        weights: Path of a folder, or `owner/name` on the hub.
        **overrides: Config fields to change.

    Raises:
        UserError: There is no such app, or no such weights.
    """
    from manyhead import registry

    return registry.get(app).load("model").from_pretrained(weights, **overrides)
