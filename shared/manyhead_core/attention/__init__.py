"""Softmax attention with one fixed meaning on every kernel. Importing it needs torch only."""

from __future__ import annotations

from manyhead_core.attention.attend import Attend, AttendOutput, attend
from manyhead_core.attention.backend import AttendInfo, Backend, explain_backend
from manyhead_core.attention.maps import MapRequest

__all__ = [
    "Attend",
    "AttendInfo",
    "AttendOutput",
    "Backend",
    "MapRequest",
    "attend",
    "explain_backend",
]
