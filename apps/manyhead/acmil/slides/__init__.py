"""Slides of any format behind one interface."""

from __future__ import annotations

from manyhead.acmil.slides.opening import open_slide
from manyhead.acmil.slides.slide import Slide

__all__ = ["Slide", "open_slide"]
