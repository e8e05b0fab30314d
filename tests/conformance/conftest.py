"""Every test of this folder runs once per app of the registry."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhead import registry
from manyhead_core.app import App

sys.path.insert(0, str(Path(__file__).parent))

from small import SMALL

Build = Callable[..., Any]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "app" in metafunc.fixturenames:
        metafunc.parametrize("app", registry.apps().values(), ids=lambda row: row.name)


@pytest.fixture
def build(app: App) -> Build:
    """Build the small network of the app, with seeded weights and other config fields on demand."""

    def make(**changes: Any) -> Any:
        assert app.name in SMALL, f"{app.name}: add a row to tests/conformance/small.py"
        torch.manual_seed(0)
        config = app.load("config")(**SMALL[app.name] | changes)
        return app.load("model")(config)

    return make
