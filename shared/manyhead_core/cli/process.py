"""What a training run changes in its process and puts back: logs, warnings, signals, variables."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from manyhead_core.cli import console

# Lightning's advice that does not hold here; everything else is shown.
SILENCED = (
    ".*exists and is not empty.*",  # a resumed run goes on in its folder
    ".*does not have many workers.*",  # tables are drawn by index, without workers
    ".*smaller than the logging interval.*",
    ".*Total length of .* across ranks is zero.*",  # no validation part; the fit says so itself
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 on torch 2.13
    ".*litlogger.*",
    ".*callbacks used to create the checkpoint need to be provided.*",  # those of fit, in a test
)
LIGHTNING = ("pytorch_lightning", "lightning_fabric")


@contextmanager
def surroundings(program: str) -> Iterator[None]:
    """Run Lightning inside: quiet, with one-line warnings, and without traces in the process.

    Args:
        program: Name that starts every warning.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    environment = dict(os.environ)
    try:
        with _log_levels(), _short_warnings(program), _signals():
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def _log_levels() -> Iterator[None]:
    """Set Lightning's levels to ours: its import has set them to INFO. Drop its advertisements."""
    level = logging.getLogger("manyhead_core").level
    for name in LIGHTNING:
        logging.getLogger(name).setLevel(level)
    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    log.addFilter(_no_tips)
    try:
        yield
    finally:
        log.removeFilter(_no_tips)


def _no_tips(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


@contextmanager
def _short_warnings(program: str) -> Iterator[None]:
    """Show warnings as one line on stderr; with -q not at all."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        console.say(f"{program}: warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        for message in SILENCED:
            warnings.filterwarnings("ignore", message)
        warnings.showwarning = show
        yield


@contextmanager
def _signals() -> Iterator[None]:
    """Undo what Lightning leaves behind: after Ctrl-C it ignores the signal for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
