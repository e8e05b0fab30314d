"""ACMIL: slide-level classification of whole-slide images by multi-branch attention pooling."""

from __future__ import annotations

from manyhead.acmil.model import ACMIL, ACMILConfig

__all__ = ["ACMIL", "ACMILConfig"]
