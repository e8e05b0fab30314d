"""The command that reports on recordings before anything is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from manyhead.mvpformer.look import Findings, Look, Looked
from manyhead.mvpformer.patients import WHY
from manyhead.mvpformer.preparing import PrepareOptions
from manyhead.mvpformer.preparing.options import Montage
from manyhead.mvpformer.readers import ReadOptions, find_recordings
from manyhead.mvpformer.readers.options import SEIZURE_PATTERN
from manyhead.mvpformer.readers.units import LARGEST, SMALLEST
from manyhead.mvpformer.windows import WindowOptions
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.evaluate.files import plain, replace, replace_json

QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}
SHOWN = 8


def inspect(
    app: App,  # noqa: ARG001  the command line gives it to every command
    root: Path,
    format: str = "auto",
    patient: str = "",
    seizures: Path | None = None,
    units: Literal["auto", "V", "mV", "uV", "nV"] = "auto",
    pattern: str = SEIZURE_PATTERN,
    keep_bad: bool = False,
    zeros: Literal["refuse", "keep"] = "refuse",
    rate: float = 512.0,
    montage: Montage = "none",
    channels: str = "all",
    max_channels: int = 128,
    flat: Literal["keep", "drop"] = "keep",
    num_segments: int = 25,
    segment_seconds: float = 5.0,
    stride_seconds: float = 5.0,
    padding: Literal["repeat", "none"] = "repeat",
    target: Literal["classes", "next_token"] = "classes",
    out: Path | None = None,
) -> int:
    """Report on recordings: patients, channels, gaps, units, seizures, what a run leaves out.

    The options are those of a run, `data.` left out, and have the same defaults. Exit code 2 when
    no recording can be used.

    Args:
        app: Row of the app.
        root: Folder of recordings, or a recording.
        format: How they lie on disk; `auto` looks at the files.
        patient: Regular expression that finds the patient in the path of a file.
        seizures: Table or folder with seizure times, in place of what the files say.
        units: Unit of the stored numbers; `auto` believes the files.
        pattern: Regular expression that finds seizures in the text of annotations.
        keep_bad: Keep channels that the files call bad.
        zeros: `refuse` or `keep` long stretches in which all channels are zero.
        rate: Samples per second that the network takes, Hz.
        montage: `none`, `average`, `median` or `bipolar`.
        channels: `all`, `first`, `even`, `variance`, `kurtosis`, or names with commas between.
        max_channels: Most channels of a recording.
        flat: `keep` or `drop` channels without any signal.
        num_segments: Segments of a window.
        segment_seconds: Length of a segment, s.
        stride_seconds: From one window to the next, s.
        padding: `repeat` the first segment, or `none`.
        target: `classes` needs annotations, `next_token` does not.
        out: Folder for recordings.csv, a row a recording, and summary.json.
    """
    read = ReadOptions(
        units=units, seizures=seizures, pattern=pattern, keep_bad=keep_bad, zeros=zeros
    )
    prepare = PrepareOptions(
        rate=rate, montage=montage, channels=channels, max_channels=max_channels, flat=flat
    )
    layout = WindowOptions(
        num_segments=num_segments,
        segment_seconds=segment_seconds,
        stride_seconds=stride_seconds,
        padding=padding,
    )
    look = Look(read, prepare, layout, target == "classes")
    found = look.over(find_recordings(root, format, patient=patient))
    show(found)
    if out is not None:
        write(found, out)
    return 0 if any(not row.problem for row in found.rows) else 2


def numbers(found: Findings) -> dict[str, str]:
    """Facts over all recordings, in words.

    Args:
        found: What was looked at.
    """
    rows = [row for row in found.rows if row.readable]
    facts = {
        "recordings": _of(len(rows), len(found.rows), "readable"),
        "patients": str(len({row.patient for row in found.rows})),
        "hours": f"{sum(row.hours for row in rows):.2f}" if rows else "",
        "a recording, min": _quantiles([60 * row.hours for row in rows]),
        "rates in the files": _counted(f"{row.rate:g} Hz" for row in rows),
        "channels of a recording": _quantiles([row.channels for row in rows]),
        "channels that a run uses": _quantiles([row.used for row in rows if row.used]),
        "typical deviation, µV": _quantiles([row.deviation for row in rows], "{:.3g}"),
        "recordings with gaps": _gaps(rows),
    }
    return {name: text for name, text in (facts | _seizures(rows)).items() if text}


def _seizures(rows: Sequence[Looked]) -> dict[str, str]:
    annotated = [row for row in rows if row.seizures is not None]
    spans = [span for row in annotated for span in row.seizure_seconds]
    having = {row.patient for row in annotated if row.seizures}
    steps = sum(row.steps for row in annotated)
    touched = sum(row.seizure_steps for row in annotated)
    return {
        "annotated recordings": _of(len(annotated), len(rows)) if rows else "",
        "seizures": f"{len(spans)} of {len(having)} patients" if annotated else "",
        "a seizure, s": _quantiles(spans),
        "steps with a seizure": f"{touched:,} of {steps:,} ({touched / steps:.1%})"
        if steps
        else "",
    }


def _of(part: int, whole: int, what: str = "") -> str:
    return f"{part} of {whole} {what}".strip()


def _counted(values: Iterable[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in Counter(values).most_common(SHOWN))


def _gaps(rows: Sequence[Looked]) -> str:
    having = [row for row in rows if row.gaps]
    total = sum(row.gap_seconds for row in having)
    return f"{len(having)} ({total:.0f} s in all)" if having else ""


def _quantiles(values: Sequence[float], form: str = "{:,.0f}") -> str:
    known = np.asarray([value for value in values if np.isfinite(value)])
    if not len(known):
        return ""
    found = np.quantile(known, list(QUANTILES.values()))
    return ", ".join(
        f"{name} {form.format(value)}" for name, value in zip(QUANTILES, found, strict=True)
    )


def show(found: Findings) -> None:
    """Print what was found.

    Args:
        found: What was looked at.
    """
    console.table("Data", ("what", "value"), list(numbers(found).items()))
    _show_recordings(found.rows)
    _show_channels(found.rows)
    problems = Counter(row.problem for row in found.rows if row.problem)
    rows = [(what, n, _named(found.rows, what)) for what, n in problems.most_common(SHOWN)]
    if rows:
        title = "Recordings that a run leaves out"
        console.table(title, ("problem", "recordings", "as"), rows)
    _show_sameness(found)
    _remark(found.rows)


def _show_recordings(rows: Sequence[Looked]) -> None:
    header = ("recording", "patient", "min", "Hz", "channels", "used", "seizures", "steps", "µV")
    cells = [
        (
            row.recording,
            row.patient,
            f"{60 * row.hours:.1f}",
            f"{row.rate:g}",
            row.channels,
            row.used,
            "-" if row.seizures is None else row.seizures,
            row.steps,
            "-" if np.isnan(row.deviation) else f"{row.deviation:.3g}",
        )
        for row in rows
        if row.readable
    ]
    if cells:
        more = f", the first {2 * SHOWN} of {len(cells)}" if len(cells) > 2 * SHOWN else ""
        console.table(f"Recordings{more}", header, cells[: 2 * SHOWN])


def _show_channels(rows: Sequence[Looked]) -> None:
    """Channels that are left out by reason, and flat ones."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for name, why in row.dropped.items():
            reasons.setdefault(why, []).append(f"{row.recording} {name}")
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    lost = [(why, len(names), ", ".join(names[:3])) for why, names in ordered[:SHOWN]]
    if lost:
        console.table("Channels that are left out", ("reason", "channels", "as"), lost)
    flat = [(row.recording, ", ".join(row.flat[:SHOWN]), len(row.flat)) for row in rows if row.flat]
    if flat:
        console.table("Flat where looked at", ("recording", "channels", "count"), flat[:SHOWN])


def _named(rows: Sequence[Looked], problem: str) -> str:
    return ", ".join([row.recording for row in rows if row.problem == problem][:3])


def _show_sameness(found: Findings) -> None:
    if found.folders:
        rows = [(name, ", ".join(own)) for name, own in found.folders.items()]
        console.table("One patient under several names", ("patient", "folders"), rows)
        console.say(f"note: {WHY}; splits keep them together")
    if found.alike:
        alike = [(", ".join(group[:SHOWN]),) for group in found.alike[:SHOWN]]
        console.table("The same signal under several names", ("recordings",), alike)


def _remark(rows: Sequence[Looked]) -> None:
    readable = [row for row in rows if row.readable]
    odd = [row for row in readable if not SMALLEST <= row.deviation <= LARGEST]
    odd = [row for row in odd if not np.isnan(row.deviation)]
    if odd:
        console.say(
            f"note: {len(odd)} recordings have amplitudes that no brain makes, first "
            f"{odd[0].recording} ({odd[0].deviation:.3g} µV); check --units"
        )
    if readable and all(row.seizures is None for row in readable):
        console.say(
            "note: no recording is annotated; pass --seizures TABLE, or --pattern for the text of "
            "annotations"
        )
    sites: dict[str, list[int]] = {}
    for row in readable:
        sites.setdefault(row.site, []).append(row.seizures or 0)
    silent = [site for site, counts in sites.items() if not any(counts)]
    if len(sites) > 1 and silent and len(silent) < len(sites):
        console.say(
            f"note: the site {silent[0]!r} has no seizure; a network may learn the site instead"
        )
    said: dict[str, list[str]] = {}
    for row in readable:
        for text in row.notes:
            said.setdefault(text, []).append(row.recording)
    for text, names in list(said.items())[:SHOWN]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.say(f"note: {names[0]}{more}: {text}")


def write(found: Findings, out: Path) -> None:
    """Write recordings.csv and summary.json.

    Args:
        found: What was looked at.
        out: Folder.
    """
    names = [each.name for each in fields(Looked)]
    rows = [[_cell(getattr(row, name)) for name in names] for row in found.rows]
    table = pd.DataFrame(rows, columns=names).astype({"seizures": "Int64"})
    replace(out / "recordings.csv", lambda path: table.to_csv(path, index=False))
    content = {
        "format": 1,
        "numbers": numbers(found),
        "left_out": {row.recording: row.problem for row in found.rows if row.problem},
        "dropped_channels": {row.recording: dict(row.dropped) for row in found.rows if row.dropped},
        "flat_channels": {row.recording: list(row.flat) for row in found.rows if row.flat},
        "one_patient": found.folders,
        "same_signal": found.alike,
    }
    replace_json(out / "summary.json", plain(content))
    console.result(f"written: {out / 'recordings.csv'} and summary.json")


def _cell(value: Any) -> Any:
    """Lists and tables in a cell of a CSV."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {why}" for name, why in value.items())
    if isinstance(value, tuple):
        return "; ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return round(value, 6) if isinstance(value, float) else value
