"""One test per reference file: those of `--parity-dir`, or the small ones of the repository."""

from pathlib import Path

import pytest

CARRIED = Path(__file__).parent / "files"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "parity_file" in metafunc.fixturenames:
        root = metafunc.config.getoption("--parity-dir") or CARRIED
        if not root.is_dir():
            raise pytest.UsageError(f"--parity-dir: folder {root} does not exist")
        files = [f for f in sorted(root.glob("*/*")) if f.suffix in (".safetensors", ".json")]
        names = [f"{file.parent.name}/{file.name}" for file in files]
        metafunc.parametrize("parity_file", files, ids=names)
