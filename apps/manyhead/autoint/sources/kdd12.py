"""KDD Cup 2012 track 2: search advertising, with a file of user profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.sources.files import find_file, fingerprint
from manyhead.autoint.sources.text import TextSource
from manyhead_core.errors import DataError

HEADER = (
    "click", "impression", "display_url", "ad_id", "advertiser_id", "depth", "position",
    "query_id", "keyword_id", "title_id", "description_id", "user_id",
)  # fmt: skip
NUMBERS = ("impression", "depth", "position")
PROFILE = ("gender", "age")
NOBODY = "0"  # the user id of unknown users


class Kdd12Source(TextSource):
    """training.txt joined with userid_profile.txt; users without a profile have none.

    Args:
        path: The training file.
        profile_path: The file of user profiles.
        schema: Meaning of the columns.
        chunk_rows: Rows at a time.
    """

    def __init__(
        self, path: Path, profile_path: Path, schema: Schema, chunk_rows: int = 200_000
    ) -> None:
        super().__init__("kdd12", path, schema, "\t", chunk_rows)
        self.fingerprint = fingerprint([path, profile_path], schema)
        names = ["user_id", *PROFILE]
        self.profile = pd.read_csv(
            profile_path, sep="\t", header=None, names=names, dtype=str, keep_default_na=False
        )
        if self.profile["user_id"].duplicated().any():
            raise DataError(f"{profile_path.name}: holds a user twice; keep one line per user")

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Rows in file order."""
        wanted = list(columns or self.schema.columns)
        read = [name for name in wanted if name not in PROFILE]
        if len(read) < len(wanted) and "user_id" not in read:
            read.append("user_id")
        by_user = self.profile.set_index("user_id")
        for frame in super().chunks(read):
            if len(read) < len(wanted):
                user = frame["user_id"].astype(object)
                frame = frame.assign(**{name: user.map(by_user[name]) for name in PROFILE})
            yield frame[wanted]


def schema(reference: bool = False) -> Schema:
    """The 13 fields; the published preprocessing neither scales nor drops the unknown user."""
    scaling = "none" if reference else "standard"
    fields = []
    for name in (*HEADER[1:], *PROFILE):
        if name in NUMBERS:
            fields.append(Field(name, "number", transform="log_square", scaling=scaling))  # type: ignore[arg-type]
        else:
            gaps = (NOBODY,) if name == "user_id" and not reference else ()
            fields.append(Field(name, "category", missing=gaps))
    return Schema(
        "click",
        tuple(fields),
        label_above=0.0,
        group="user_id",
        segments=PROFILE,
        header=HEADER,
    )


def open_kdd12(root: Path, given: Schema | None, mode: str) -> Kdd12Source:
    """Open the folder that holds training.txt and userid_profile.txt."""
    folder = root.parent if root.is_file() else root
    path = find_file(root, "training*.txt", "KDD Cup training")
    profile = find_file(folder, "userid_profile*.txt", "user profile")
    if given is not None:
        return Kdd12Source(path, profile, replace(given, header=HEADER))
    return Kdd12Source(path, profile, schema(mode == "reference"))
