"""AutoInt: click-through-rate prediction with self-attention between the fields of a row."""

from __future__ import annotations

from manyhead.autoint.model import AutoInt, AutoIntConfig, AutoIntOutput

__all__ = ["AutoInt", "AutoIntConfig", "AutoIntOutput"]
