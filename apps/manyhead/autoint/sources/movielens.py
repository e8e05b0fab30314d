"""MovieLens as a click task: ratings 4 and 5 are clicks, 1 and 2 are not, 3 is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.sources.files import CHUNK_ROWS, find_file, fingerprint, open_text
from manyhead_core.errors import DataError

AGES = (1, 18, 25, 35, 45, 50, 56)  # lower ends of the age groups of MovieLens-1M
DECADES = ("before 1930", "1930s", "1940s", "1950s", "1960s")
SCHEMA = Schema(
    "label",
    (
        Field("gender", "category"),
        Field("age", "category"),
        Field("occupation", "category"),
        Field("zip", "category"),
        Field("release_year", "category"),
        Field("timestamp", "number"),
        Field("genres", "list"),
    ),
    group="user",
    time="timestamp",
    segments=("gender", "age"),
)


class MovieLensSource:
    """Ratings joined with users and films.

    Args:
        format: Name of the source.
        paths: Files, for the fingerprint.
        schema: Meaning of the columns: those of `SCHEMA`, and `user`, `movie`.
        users: user, gender, age, occupation, zip in file order.
        movies: movie, release_year, genres (joined by |) in file order.
        ratings: user, movie, rating, timestamp in file order.
    """

    reference_split = "shuffle"

    def __init__(
        self,
        format: str,
        paths: Sequence[Path],
        schema: Schema,
        users: pd.DataFrame,
        movies: pd.DataFrame,
        ratings: pd.DataFrame,
    ) -> None:
        self.format = format
        self.schema = schema
        self.users, self.movies = users, movies
        self.fingerprint = fingerprint(paths, schema)
        kept = ratings[ratings["rating"] != 3].reset_index(drop=True)
        self._kept = kept.assign(label=(kept["rating"] > 3).astype(np.float64))
        self._check_joins()

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Kept ratings in file order."""
        users, movies = self.users.set_index("user"), self.movies.set_index("movie")
        wanted = list(columns or self.schema.columns)
        for start in range(0, len(self._kept), CHUNK_ROWS):
            part = self._kept.iloc[start : start + CHUNK_ROWS]
            of_user = users.loc[part["user"]].set_axis(part.index)
            of_movie = movies.loc[part["movie"]].set_axis(part.index)
            frame = pd.concat([part, of_user, of_movie], axis=1)
            if gone := [name for name in wanted if name not in frame]:
                raise DataError(f"MovieLens has no column {gone[0]!r}: {', '.join(frame.columns)}")
            yield frame[wanted]

    def _check_joins(self) -> None:
        for name, table in (("user", self.users), ("movie", self.movies)):
            unknown = ~self._kept[name].isin(table[name])
            if unknown.any():
                raise DataError(
                    f"data.root: {name} {self._kept[name][unknown].iloc[0]} is rated but not "
                    f"described; the {name} file belongs to another release"
                )


def open_1m(root: Path, given: Schema | None, mode: str) -> MovieLensSource:  # noqa: ARG001
    """Open the folder that holds users.dat, movies.dat and ratings.dat, plain or .gz."""
    names = ("users*.dat", "movies*.dat", "ratings*.dat")
    paths = [find_file(root, name, "MovieLens-1M") for name in names]
    users = pd.DataFrame(
        [line.split("::") for line in _lines(paths[0])],
        columns=["user", "gender", "age", "occupation", "zip"],
    )
    users["user"] = users["user"].astype(np.int64)
    films = [line.split("::") for line in _lines(paths[1])]
    movies = pd.DataFrame(
        {
            "movie": [int(film[0]) for film in films],
            "release_year": [release_group(film[1][-5:-1]) for film in films],
            "genres": [film[2] for film in films],
        }
    )
    # Reading "::" as two separators keeps the fast parser.
    ratings = pd.read_csv(paths[2], sep=":", header=None, usecols=[0, 2, 4, 6], dtype=np.int64)
    ratings.columns = pd.Index(["user", "movie", "rating", "timestamp"])
    return MovieLensSource("movielens-1m", paths, given or SCHEMA, users, movies, ratings)


def open_100k(root: Path, given: Schema | None, mode: str) -> MovieLensSource:  # noqa: ARG001
    """Open the folder that holds u.user, u.item and u.data, plain or .gz.

    Ages are grouped as in MovieLens-1M.
    """
    paths = [find_file(root, name, "MovieLens-100K") for name in ("u.user", "u.item", "u.data")]
    genres = find_file(root, "u.genre", "MovieLens-100K")
    names = [line.split("|")[0] for line in _lines(genres)]
    rows = [line.split("|") for line in _lines(paths[0])]
    users = pd.DataFrame(rows, columns=["user", "age", "gender", "occupation", "zip"])
    users["user"] = users["user"].astype(np.int64)
    users["age"] = [age_group(int(age)) for age in users["age"]]
    films = [line.split("|") for line in _lines(paths[1])]
    movies = pd.DataFrame(
        {
            "movie": [int(film[0]) for film in films],
            "release_year": [release_group(film[2][-4:]) for film in films],
            "genres": [_genres(film[5:], names) for film in films],
        }
    )
    ratings = pd.read_csv(paths[2], sep="\t", header=None, dtype=np.int64)
    ratings.columns = pd.Index(["user", "movie", "rating", "timestamp"])
    return MovieLensSource(
        "movielens-100k", [*paths, genres], given or SCHEMA, users, movies, ratings
    )


def release_group(year: str) -> str:
    """The year from 1970 on, its decade before, the empty text when there is none."""
    if not year.isdigit():
        return ""
    number = int(year)
    if number >= 1970:
        return year
    return DECADES[max(0, (number - 1920) // 10)]


def age_group(age: int) -> str:
    """Lower end of the age group of MovieLens-1M."""
    return str(max(low for low in AGES if low <= max(age, 1)))


def _genres(flags: Sequence[str], names: Sequence[str]) -> str:
    return "|".join(name for name, flag in zip(names, flags, strict=False) if flag == "1")


def _lines(path: Path) -> list[str]:
    with open_text(path, "latin-1") as file:
        return [line for line in file.read().split("\n") if line.strip()]
