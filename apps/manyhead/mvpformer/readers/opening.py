"""Open any recording, with the checks that all formats share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from manyhead.mvpformer.readers.annotations import from_table
from manyhead.mvpformer.readers.arrays import open_arrays
from manyhead.mvpformer.readers.bids import open_bids
from manyhead.mvpformer.readers.bonn import open_bonn
from manyhead.mvpformer.readers.edf import open_edf
from manyhead.mvpformer.readers.files import unreadable
from manyhead.mvpformer.readers.mne_reader import open_raw
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.segments_mat import open_segment
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.swec import open_swec
from manyhead.mvpformer.readers.swec_mat import open_swec_mat
from manyhead.mvpformer.readers.units import check_amplitude, probe
from manyhead.mvpformer.recording import Recording
from manyhead_core.errors import ConfigError, DataError

OPENERS: dict[str, Callable[[Source, ReadOptions], Recording]] = {
    "bids": open_bids,
    "swec": open_swec,
    "swec_mat": open_swec_mat,
    "segments_mat": open_segment,
    "bonn": open_bonn,
    "edf": open_edf,
    "mne": open_raw,
    "arrays": open_arrays,
}
DEFAULTS = ReadOptions()


def open_recording(source: Source, options: ReadOptions = DEFAULTS) -> Recording:
    """A recording in µV.

    Args:
        source: What `find_recordings` gave.
        options: How to read it.

    Raises:
        DataError: It cannot be read, or contradicts itself; one line with the id and a remedy.
    """
    if source.format not in OPENERS:
        raise ConfigError(f"format: {source.format!r} is none of {', '.join(OPENERS)}")
    try:
        recording = OPENERS[source.format](source, options)
    except (DataError, ConfigError):
        raise
    except Exception as error:
        # The libraries raise all kinds of errors on damaged files; a batch goes on with the next.
        raise unreadable(source.id, error) from error
    try:
        return _checked(recording, source, options)
    except DataError:
        recording.close()
        raise


def _checked(recording: Recording, source: Source, options: ReadOptions) -> Recording:
    info = recording.info
    if not info.channels:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(info.dropped.items())[:3])
        raise DataError(
            f"{info.id}: no channel is left ({reasons or 'the file has none'}); "
            "correct types and status in channels.tsv, or leave the recording out"
        )
    if options.seizures is not None:
        found = from_table(options.seizures, info.id, info.duration)
        known = info.seizures if found.seizures is None else found.seizures
        info = replace(info, seizures=known, notes=(*info.notes, *found.notes))
    seen = probe(recording)
    if len(seen.flat) == len(info.channels) and options.zeros == "refuse":
        raise DataError(
            f"{info.id}: all {len(seen.flat)} channels are flat wherever looked at; leave the "
            "recording out, or keep it with zeros=keep"
        )
    if options.units == "auto":
        check_amplitude(info.id, seen.deviation)
    notes = (f"flat where looked at: {_few(seen.flat)}",) if seen.flat else ()
    site = info.site or source.extra.get("site", "")
    recording.info = replace(info, site=site, notes=(*info.notes, *notes))
    return recording


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
