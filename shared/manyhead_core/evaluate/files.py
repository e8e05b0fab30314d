"""Write results so that a reader never meets half a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from manyhead_core.errors import DataError


def replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then give it that name.

    Args:
        path: Where the file shall be; missing folders are made.
        write: Gets the temporary path.

    Raises:
        DataError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as err:
        raise DataError(f"{path}: cannot be written: {err.strerror or err}") from err
    finally:
        # Below something that is a file there is nothing to take away, and that is an error too.
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)
    return path


def replace_text(path: Path, text: str) -> Path:
    """Write UTF-8 text in one step."""
    return replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON in one step; numbers that are not finite become null."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    return replace_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file.

    Raises:
        DataError: The file is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: is damaged or not JSON; delete it and run again") from err
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no JSON object")
    return content


def plain(value: Any) -> Any:
    """`value` as JSON knows it: no numpy types, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
