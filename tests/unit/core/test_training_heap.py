import subprocess
import sys

import pytest

from manyhead_core.training.heap import keep_freed_memory

PROGRAM = """
import resource, sys, torch
from manyhead_core.training.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    x = torch.ones(2**24)
    y = x * 2
    return float((torch.relu(y) + x)[0])
for _ in range(5):
    step()
before = faults()
for _ in range(8):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    found = {}
    for mode in ("default", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
        )
        found[mode] = int(done.stdout)
    assert found["keep"] < found["default"] / 5, found


def test_settings_of_the_user_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
