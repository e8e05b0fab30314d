"""Names that users import: removing one takes an edit of the list, and a line in the changelog."""

import json
from importlib import import_module
from pathlib import Path

import pytest

NAMES = json.loads(Path(__file__).with_name("public_names.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", NAMES)
def test_public_names_are_those_of_the_list(module: str) -> None:
    found = import_module(module)
    assert sorted(found.__all__) == NAMES[module]
    assert all(hasattr(found, name) for name in NAMES[module])
