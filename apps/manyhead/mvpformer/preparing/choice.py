"""Which channels are given to a network that takes fewer than there are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.preparing.options import PrepareOptions
from manyhead.mvpformer.recording import Signal
from manyhead_core.errors import DataError


def choose(
    recording: str,
    names: Sequence[str],
    flat: npt.NDArray[np.bool_],
    pieces: Sequence[Signal],
    options: PrepareOptions,
) -> tuple[list[int], dict[str, Any]]:
    """Index of the chosen channels, and how they were chosen.

    Rules keep the order of the recording and take a flat channel only where no other is left.
    Names come in the order in which they were given.

    Args:
        recording: Its id, for messages.
        names: Of the channels after the montage.
        flat: Channels without signal, `(channels,)`.
        pieces: Some of the signal after the montage, each `(channels, samples)`.
        options: Rule or names, and the greatest number.

    Raises:
        DataError: More channels than the network takes, or a name that does not exist.
    """
    rule, most = options.channels, options.max_channels
    wanted = len(options.names) or (len(names) if rule == "all" else 0)
    if wanted > most:
        raise too_many(recording, wanted, most)
    if options.names:
        return _by_name(recording, names, options.names), {"rule": "names"}
    if rule == "all" or len(names) <= most:
        return list(range(len(names))), {"rule": rule}
    live = np.flatnonzero(~flat)
    order = live if rule in ("first", "even") else live[_ranked(rule, pieces, live)]
    if rule == "even" and len(live) > most:
        order = live[np.round(np.linspace(0, len(live) - 1, most)).astype(np.int64)]
    picked = [*order, *np.flatnonzero(flat)][:most]
    return sorted(int(row) for row in picked), {"rule": rule, "of": len(names)}


def too_many(recording: str, channels: int, most: int) -> DataError:
    """The error for more channels than the channel table of a network has rows."""
    return DataError(
        f"{recording}: {channels} channels are more than the {most} rows of the model's channel "
        f"table; choose {most} with --channels even or --channels variance, or name them"
    )


def spread(pieces: Sequence[Signal]) -> npt.NDArray[np.float64]:
    """Median over the pieces of each channel's variance within a piece, µV²."""
    found = [np.var(piece.astype(np.float64), axis=1) for piece in pieces]
    return np.asarray(np.median(found, axis=0), np.float64)


def peakedness(pieces: Sequence[Signal]) -> npt.NDArray[np.float64]:
    """Median over the pieces of each channel's excess kurtosis within a piece; 0 if flat."""
    found = []
    for piece in pieces:
        centred = piece.astype(np.float64) - piece.mean(axis=1, dtype=np.float64, keepdims=True)
        second = np.mean(centred**2, axis=1)
        fourth = np.mean(centred**4, axis=1)
        safe = np.where(second > 0, second, 1)
        found.append(np.where(second > 0, fourth / safe**2 - 3, 0))
    return np.asarray(np.median(found, axis=0), np.float64)


def _ranked(
    rule: str, pieces: Sequence[Signal], live: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Order by falling score; the earlier channel wins a tie."""
    score = spread(pieces) if rule == "variance" else peakedness(pieces)
    return np.argsort(-score[live], kind="stable")


def _by_name(recording: str, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    place = {name: row for row, name in enumerate(names)}
    folded = {name.casefold(): row for row, name in enumerate(names)}
    rows = []
    for name in wanted:
        row = place.get(name, folded.get(name.casefold()))
        if row is None:
            near = difflib.get_close_matches(name, names, 3) or list(names[:3])
            raise DataError(
                f"{recording}: --channels names {name}, which is not among its {len(names)} "
                f"channels; did you mean {', '.join(near)}"
            )
        if row in rows:
            raise DataError(f"{recording}: --channels names {names[row]} twice; name it once")
        rows.append(row)
    return rows
