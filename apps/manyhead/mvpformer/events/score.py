"""`manyhead mvpformer score`: how well tables of detected seizures agree with the true ones."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manyhead.mvpformer.evaluate import evaluate_rows, headline
from manyhead.mvpformer.events.page import patient_table
from manyhead.mvpformer.events.szcore import ScoreOptions
from manyhead.mvpformer.events.table import patient_rows
from manyhead.mvpformer.events.tallies import Counted, count_events, pooled
from manyhead.mvpformer.events.tsv import read_events, recording_length
from manyhead_core.cli import console
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate.evaluation import defined
from manyhead_core.evaluate.files import replace_json
from manyhead_core.training.results import RESEARCH_ONLY, hashed

LIMITS = ("value", "low", "high")
SUFFIXES = (".tsv", ".csv")
# What stands for the kind of file or its maker, not for the recording.
ENDINGS = re.compile(r"(_(events|ieeg|eeg|annotations|predictions?|desc-[^_]+))+$", re.IGNORECASE)
SUBJECT = re.compile(r"(?:^|_)(sub-[^_]+)")
NOT_EVENTS = ("channels", "electrodes", "participants", "scans", "sessions", "steps", "report")


@dataclass(frozen=True)
class _File:
    """Scores of one recording, or why there are none."""

    recording: str
    patient: str
    counted: Counted | None
    problem: str = ""


def score(
    reference: Path,
    hypothesis: Path,
    /,
    duration: float | None = None,
    before: float = 30.0,
    after: float = 60.0,
    overlap: float = 0.0,
    longest: float = 300.0,
    merge: float = 90.0,
    step_seconds: float = 0.0,
    missing: bool = False,
    out: Path | None = None,
    strict: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> int:
    """Score tables of detected seizures against the true ones, as SzCORE does by default.

    Args:
        reference: An events.tsv (or CSV with onset and offset), or a folder with one a recording.
        hypothesis: The same of the detections; files match by their BIDS name.
        duration: Length of the recordings in s, for files without recordingDuration.
        before: A seizure is also found by a detection up to so many s before it.
        after: The same after its end, s.
        overlap: Share of the extended seizure that must be covered; 0 means any overlap.
        longest: Events longer than so many s are split into pieces.
        merge: Events that are less than so many s apart are joined first.
        step_seconds: Length of a step of the detector in s, which the delay includes.
        missing: Count a recording without a file of detections as one without detections.
        out: JSON file for the result.
        strict: Exit with 2 when a recording could not be scored.
        draws: Bootstrap resamples of patients; below 10 patients there are no intervals.
        seed: Seed of the resamples.
    """
    if out is not None and out.exists():
        raise UserError(f"--out: {out} exists; choose another name")
    if duration is not None and not duration >= 0.1:
        raise UserError(f"--duration: {duration:g} is not 0.1 s or more")
    options = ScoreOptions(
        before=before, after=after, overlap=overlap, longest=longest, merge=merge
    )
    scored = [
        _score_pair(name, files, options, duration, step_seconds, missing)
        for name, files in _pairs(reference, hypothesis).items()
    ]
    failed = [entry for entry in scored if entry.counted is None]
    for entry in failed:
        console.say(f"not scored: {entry.recording}: {entry.problem}")
    if len(failed) == len(scored):
        raise DataError(f"reference: none of the {len(scored)} recordings could be scored")
    result = _result(scored, options, draws, seed)
    _show(result)
    if out is not None:
        replace_json(out, result)
        console.say(f"written: {out}")
    return 2 if strict and failed else 0


def recording_name(path: Path) -> str:
    """What a file of events is about: its BIDS name without what says that it holds events."""
    return ENDINGS.sub("", path.name.rsplit(".", 1)[0])


def patient_name(recording: str) -> str:
    """The subject in a BIDS name; the name itself when it has none."""
    found = SUBJECT.search(recording)
    return found.group(1) if found else recording


def event_files(option: str, path: Path) -> dict[str, Path]:
    """Files of events below a folder by recording; other BIDS tables are left out.

    Args:
        option: As the user passed it, for messages.
        path: A folder.

    Raises:
        DataError: There is no such folder, no file of events, or two for one recording.
    """
    if not path.is_dir():
        raise DataError(f"{option}: {path} does not exist; pass a file or folder of events")
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]
    files = [file for file in files if not file.stem.lower().endswith(NOT_EVENTS)]
    found: dict[str, Path] = {}
    for file in files:
        name = recording_name(file)
        if name in found:
            raise DataError(f"{option}: recording {name} has two files of events; keep one of them")
        found[name] = file
    if not found:
        raise DataError(f"{option}: {path} holds no .tsv or .csv file of events")
    return found


def _pairs(reference: Path, hypothesis: Path) -> dict[str, tuple[Path, Path | None]]:
    """Both files of each recording of the reference; None where nothing was detected on it."""
    if reference.is_file() and hypothesis.is_file():
        return {recording_name(reference): (reference, hypothesis)}
    if reference.is_file() or hypothesis.is_file():
        raise DataError("reference, hypothesis: pass two files or two folders")
    true, found = event_files("reference", reference), event_files("hypothesis", hypothesis)
    extra = sorted(set(found) - set(true))
    if extra:
        console.say(f"{len(extra)} files of detections have no reference, as {extra[0]}: left out")
    if not set(true) & set(found):
        raise DataError(
            f"hypothesis: no file matches a recording of the reference; {next(iter(found))} and "
            f"{next(iter(true))} should have the same name before _events"
        )
    return {name: (file, found.get(name)) for name, file in true.items()}


def _score_pair(
    name: str,
    files: tuple[Path, Path | None],
    options: ScoreOptions,
    duration: float | None,
    step: float,
    missing: bool,
) -> _File:
    reference, hypothesis = files
    try:
        if hypothesis is None and not missing:
            raise DataError("no file of detections; --missing counts it as one without detections")
        known = (recording_length(file) for file in files if file is not None)
        length = next((value for value in known if value is not None), duration)
        if length is None:
            raise DataError("no recordingDuration in either file; pass --duration")
        true = read_events(reference, length)
        found = () if hypothesis is None else read_events(hypothesis, length)
        counted = count_events(true, found, length, options, step)
    except DataError as err:
        return _File(name, patient_name(name), None, str(err))
    return _File(name, patient_name(name), counted)


def _result(scored: list[_File], options: ScoreOptions, draws: int, seed: int) -> dict[str, Any]:
    patients: dict[str, list[Counted]] = {}
    for entry in scored:
        if entry.counted is not None:
            patients.setdefault(hashed(entry.patient), []).append(entry.counted)
    rows = patient_rows(
        {name: pooled(parts) for name, parts in sorted(patients.items())},
        num_excluded=sum(entry.counted is None for entry in scored),
    )
    found = evaluate_rows(rows, options.describe(), draws=draws, seed=seed)
    return {
        "format": 1,
        "kind": "event scores",
        "parameters": asdict(options),
        **found.to_json(),
        "files": [_entry(entry) for entry in scored],
    }


def _entry(entry: _File) -> dict[str, Any]:
    known: dict[str, Any] = {"recording": entry.recording, "patient": hashed(entry.patient)}
    if entry.counted is None:
        return known | {"status": "failed", "problem": entry.problem}
    true, hits, alarms, seconds = entry.counted.events
    delays = [defined(value) for value in entry.counted.delays]
    counts = {"true": true, "hits": hits, "false_alarms": alarms, "duration": seconds}
    return known | {"status": "ok", **counts, "delays": delays}


def _show(result: dict[str, Any]) -> None:
    rows = [
        (name, *("" if entry[key] is None else f"{entry[key]:.4f}" for key in LIMITS))
        for name, entry in result["metrics"].items()
    ]
    title = f"{result['num_samples']} recordings, {result['num_groups']} patients"
    console.table(title, ("metric", "value", "95 % low", "95 % high"), rows)
    console.table("each patient", *patient_table(result["details"]["patients"]))
    if not result["interval"].get("draws"):
        console.say(f"intervals: {result['interval']['method']}")
    console.result(headline(result))
    console.result(RESEARCH_ONLY)
