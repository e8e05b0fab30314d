"""From what the user wrote after `--weights` to a local folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from manyhead_core.errors import WeightsError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(folder_or_id: str | Path, **options: Any) -> Path:
    """The local folder of some weights; a hub id is downloaded or taken from the cache.

    Args:
        folder_or_id: Path of a folder, or `owner/name` on the hub.
        **options: For the hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        WeightsError: There is no such folder, or the hub cannot be reached.
    """
    path = Path(folder_or_id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise WeightsError(f"weights: {path} is a file; pass the folder that export has written")
    name = str(folder_or_id)
    if not HUB_ID.fullmatch(name):
        raise WeightsError(f"weights: no folder {name}")
    return _from_hub(name, options)


def _from_hub(name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        options = {**options, "local_files_only": True}
    try:
        return Path(snapshot_download(name, **options))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as err:
        cause = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise WeightsError(
            f"weights: no folder {name}, and the hub did not give it ({cause}); "
            "download it elsewhere and pass the local folder"
        ) from err
