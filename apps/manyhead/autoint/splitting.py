"""Which rows train, validate and test."""

from __future__ import annotations
