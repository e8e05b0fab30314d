"""Feature files as CLAM, TRIDENT, STAMP, ACMIL and others write them, behind one interface."""

from __future__ import annotations

from manyhead.acmil.layouts.feature_file import FeatureFile
from manyhead.acmil.layouts.opening import open_features, slides_in

__all__ = ["FeatureFile", "open_features", "slides_in"]
