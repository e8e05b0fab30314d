"""Peak memory: of a fresh process on a CPU, of the allocator on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness import Setting, synchronise

ROOT = Path(__file__).resolve().parents[1]
INTERVAL_SECONDS = 0.005


class Peak(NamedTuple):
    """Peak memory of a process.

    Args:
        anonymous: Most anonymous resident memory in bytes; None where `/proc` does not tell it.
            Pages of mapped files are not in it: the system takes them back when it needs them.
        answer: What the function returned.
    """

    anonymous: int | None
    answer: Any


def anonymous_bytes(process: int | str = "self") -> int | None:
    """Anonymous resident memory of a process in bytes; None where the system does not tell it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(fields["RssAnon"].split()[0]) if "RssAnon" in fields else None


class PeakMemory:
    """Sample the anonymous memory of a process in a thread while the block runs.

    Args:
        process: Process id, or `self`.
    """

    def __init__(self, process: int | str = "self") -> None:
        self.peak: int | None = None
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def sample(self) -> None:
        """Look once; the thread does it all the time."""
        found = anonymous_bytes(self._process)
        if found is not None:
            self.peak = max(found, self.peak or 0)

    def _watch(self) -> None:
        while True:
            self.sample()
            if self._stop.wait(INTERVAL_SECONDS):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def run_fresh(function: str, arguments: Mapping[str, Any], threads: int = 1) -> Peak:
    """Call a function in a new process and watch its memory from outside.

    From outside, because a thread inside would wait whenever the process holds the interpreter
    lock, which is when it allocates.

    Args:
        function: `package.module:function`; returns something that JSON can hold.
        arguments: Keyword arguments, plain values.
        threads: Threads of the child.
    """
    call = [sys.executable, "-m", "benchmarks.child", function, json.dumps(dict(arguments))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (
        subprocess.Popen(
            call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as child,
        PeakMemory(child.pid) as memory,
    ):
        out, _ = child.communicate()
    if child.returncode != 0:
        raise RuntimeError(f"{function} ended with exit code {child.returncode}")
    return Peak(memory.peak, json.loads(out.splitlines()[-1]))


def device_peak(call: Callable[[], Any], setting: Setting) -> dict[str, float]:
    """Most memory the allocator of the GPU held during one call; empty on a CPU."""
    if setting.device.type != "cuda":
        return {}
    synchronise(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    call()
    synchronise(setting.device)
    return {"peak_device_bytes": float(torch.cuda.max_memory_allocated(setting.device))}
