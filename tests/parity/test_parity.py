"""`pytest tests/parity --parity-dir DIR [-k APP]`: reproduce reference files.

A file's folder names the app, `case` in its header the case. What an app of this suite cannot
replay is a failure; folders of apps that are not in the suite are skipped.
"""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from comparison import Reference  # noqa: E402


@pytest.mark.parity
def test_reproduces(parity_file: Path, pytestconfig: pytest.Config) -> None:
    app = parity_file.parent.name
    if importlib.util.find_spec(f"replay_{app}") is None:
        pytest.skip(f"{app} is not part of this version")
    module = import_module(f"replay_{app}")
    torch.set_float32_matmul_precision("highest")
    reference = Reference(parity_file, pytestconfig.getoption("--data-dir"))
    case = reference.config["case"]
    assert case in module.CASES, f"unknown case {case!r}; known: {module.CASES}"
    module.replay(reference)
