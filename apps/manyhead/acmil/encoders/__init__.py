"""What turns a tile into a feature: the built-in one of 32 numbers, and those of the user."""

from __future__ import annotations

from manyhead.acmil.encoders.encoder import Encoder
from manyhead.acmil.encoders.loading import open_encoder
from manyhead.acmil.encoders.transform import Transform, TransformOptions

__all__ = ["Encoder", "Transform", "TransformOptions", "open_encoder"]
