"""Which extra of the distribution brings a package that is missing."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

from manyhead_core.app import App

DISTRIBUTION = "manyhead"
# Import names that differ from the name of the distribution.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "openslide": "openslide-python"}


def missing_package(err: ImportError, app: App | None) -> str | None:
    """The line for a missing package of an extra, or None when the import error is our own."""
    name = (err.name or "").partition(".")[0]
    if not isinstance(err, ModuleNotFoundError):
        # pandas wraps the missing package of an optional reader in a plain ImportError.
        found = re.search(r"optional dependency ['\"]([\w.-]+)['\"]", str(err))
        name = found[1] if found else ""
    if not name or name in ("manyhead", "manyhead_core"):
        return None
    extra = extras().get(DISTRIBUTIONS.get(name, name).lower().replace("_", "-"))
    extra = extra or (app.extra if app else "all")
    return f"package '{name}' is missing; run: pip install '{DISTRIBUTION}[{extra}]'"


def extras() -> dict[str, str]:
    """Extra by distribution name, from the metadata of the installed suite."""
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        match = re.match(r"([\w.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if match and match[2] not in ("all", "dev", "docs"):
            found.setdefault(match[1].lower().replace("_", "-"), match[2])
    return found
