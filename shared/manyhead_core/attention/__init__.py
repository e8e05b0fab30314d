"""Softmax attention with one fixed meaning on every kernel. Importing it needs torch only."""

from __future__ import annotations

from manyhead_core.attention.attend import AttendOutput, attend
from manyhead_core.attention.backend import AttendInfo, Backend, explain_backend
from manyhead_core.attention.capture import capture
from manyhead_core.attention.layer import Attend
from manyhead_core.attention.linear_attend import linear_attend
from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.pool import pool
from manyhead_core.attention.registry import available, build
from manyhead_core.attention.settings import configure, configure_sdp, export_mode

__all__ = [
    "Attend",
    "AttendInfo",
    "AttendOutput",
    "Backend",
    "MapRequest",
    "attend",
    "available",
    "build",
    "capture",
    "configure",
    "configure_sdp",
    "explain_backend",
    "export_mode",
    "linear_attend",
    "pool",
]
