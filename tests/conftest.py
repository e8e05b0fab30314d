"""Options and fixtures of the whole suite: real data, reference files, one thread, the toy app."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported here or in a process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from manyhead_core.app import App

TOY = Path(__file__).parent / "cli" / "toy"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("manyhead")
    group.addoption("--data-dir", type=Path, metavar="DIR", help="folder of the real data sets")
    group.addoption("--parity-dir", type=Path, metavar="DIR", help="folder of the reference files")


def pytest_configure() -> None:
    torch.set_num_threads(1)
    # A shell starts background jobs with the signal ignored; the tests of Ctrl-C need it.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _folder(config: pytest.Config, option: str) -> Path:
    folder: Path | None = config.getoption(option)
    if folder is None:
        pytest.skip(f"pass {option} DIR")
    if not folder.is_dir():
        pytest.fail(f"{option}: folder {folder} does not exist")
    return folder.resolve()


@pytest.fixture(scope="session")
def data_dir(pytestconfig: pytest.Config) -> Path:
    """Folder of the real data sets."""
    return _folder(pytestconfig, "--data-dir")


@pytest.fixture(scope="session")
def parity_dir(pytestconfig: pytest.Config) -> Path:
    """Folder of the reference files."""
    return _folder(pytestconfig, "--parity-dir")


@pytest.fixture(scope="session")
def toy() -> Iterator[App]:
    """The row of the toy app; its package is importable as `toyapp`."""
    sys.path.insert(0, str(TOY))
    try:
        from toyapp.row import APP

        yield APP
    finally:
        sys.path.remove(str(TOY))
