"""The command that simulates recordings of several patients with seizures at known times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from manyhead.mvpformer.simulate.bids import BidsLayout
from manyhead.mvpformer.simulate.gains import recruited
from manyhead.mvpformer.simulate.layout import Layout
from manyhead.mvpformer.simulate.patients import Profile, profile
from manyhead.mvpformer.simulate.signals import draw
from manyhead.mvpformer.simulate.swec import FOLDERS, SwecLayout
from manyhead.mvpformer.simulate.timeline import Timeline, least_seconds, timeline
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.files import plain, read_json, replace_json
from manyhead_core.training.results import RESEARCH_ONLY

FORMAT = 1
MANIFEST = "simulation.json"
LEAST_RATE, MOST_RATE, MOST_CHANNELS = 128, 4096, 512
# Samples of all channels of a recording together; it is made in memory.
MOST_SAMPLES = 200_000_000


def simulate(
    out: Path,
    /,
    format: Literal["bids", "swec"] = "bids",
    patients: int = 8,
    recordings: int = 1,
    minutes: float = 20.0,
    channels: int = 16,
    rate: int = 512,
    seizures: int = 2,
    seed: int = 0,
) -> int:
    """Write intracranial EEG of simulated patients with seizures at known times.

    Channels are coupled populations of a published neural mass model whose seizures begin in an
    onset zone and spread. Patients differ in onset pattern, rhythm, spread, amplitude, background
    and artefacts; interictal spikes, runs of spikes and movements are there to deceive. Call it
    again to finish what was interrupted or to add patients.

    Args:
        out: New folder, or one that the same call has begun.
        format: BIDS-iEEG (EDF with tables), or the HDF5 layout of the long-term SWEC release.
        patients: Number of patients. A patient is the same whatever their number.
        recordings: Recordings of each patient.
        minutes: Length of a recording in min.
        channels: Channels of each patient.
        rate: Samples per second, Hz.
        seizures: Seizures of each recording, 20 to 90 s long, at least 3 min apart.
        seed: Seed; the same seed gives the same signals.
    """
    seconds = round(minutes * 60)
    check(format, patients, recordings, seconds, channels, rate, seizures)
    options = {
        "format": format, "recordings": recordings, "minutes": minutes, "channels": channels,
        "rate": rate, "seizures": seizures, "seed": seed,
    }  # fmt: skip
    claim(out, options, patients)
    people = [profile(number, channels, seed) for number in range(patients)]
    plans = [
        timeline(person, number, seconds, seizures, seed)
        for person in people
        for number in range(recordings)
    ]
    layout = _layout(format, out, rate, recordings)
    replace_json(out / MANIFEST, manifest(options, people, plans, layout))
    kept = write(plans, layout)
    layout.complete(plans)
    console.say(RESEARCH_ONLY)
    console.result(summary(plans, patients, kept, out))
    return 0


def check(
    format: str,
    patients: int,
    recordings: int,
    seconds: int,
    channels: int,
    rate: int,
    seizures: int,
) -> None:
    """Refuse numbers that make no recordings.

    Raises:
        ConfigError: One is out of range.
    """
    for name, value in (("patients", patients), ("recordings", recordings)):
        if value < 1:
            raise ConfigError(f"--{name}: is {value}; choose 1 or more")
    if format == "swec" and patients > len(FOLDERS):
        raise ConfigError(
            f"--patients: is {patients}; the swec layout has two-digit names for {len(FOLDERS)}, "
            "choose fewer or --format bids"
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise ConfigError(f"--channels: is {channels}; choose 1 to {MOST_CHANNELS}")
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise ConfigError(f"--rate: is {rate}; choose {LEAST_RATE} to {MOST_RATE} Hz")
    if seizures < 0:
        raise ConfigError(f"--seizures: is {seizures}; choose 0 or more")
    if seconds < (least := max(least_seconds(seizures), 60)):
        raise ConfigError(
            f"--minutes: is {seconds / 60:g}; {seizures} seizures need {least / 60:g} or more"
        )
    if channels * seconds * rate > MOST_SAMPLES:
        raise ConfigError(
            f"--minutes: is {seconds / 60:g}; a recording of {channels} channels at {rate} Hz may "
            f"be {MOST_SAMPLES / channels / rate / 60:.0f} min long, take more --recordings"
        )


def claim(out: Path, options: dict[str, Any], patients: int) -> None:
    """Refuse a folder that something else has written.

    Args:
        out: Folder.
        options: What is asked for, without the number of patients.
        patients: Their number.

    Raises:
        DataError: The folder holds other things, another simulation, or more patients.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise DataError(f"{out}: exists already and is no simulation; name a new folder")
    if not (out / MANIFEST).is_file():
        return
    there = read_json(out / MANIFEST)
    wanted = options | {"version": FORMAT}
    have = there.get("options", {}) | {"version": there.get("version")}
    for name, value in wanted.items():
        if have.get(name) != value:
            raise DataError(
                f"{out}: holds a simulation with {name} {have.get(name)} and --{name} is {value}; "
                "name a new folder"
            )
    if (count := len(there.get("patients", []))) > patients:
        raise DataError(
            f"{out}: holds a simulation of {count} patients and --patients is {patients}; "
            "name a new folder"
        )


def _layout(format: str, out: Path, rate: int, recordings: int) -> Layout:
    return SwecLayout(out, rate, recordings) if format == "swec" else BidsLayout(out, rate)


def manifest(
    options: dict[str, Any],
    people: Sequence[Profile],
    plans: Sequence[Timeline],
    layout: Layout,
) -> dict[str, Any]:
    """All that is known of the recordings: options, patients, seizures, spikes and artefacts.

    Args:
        options: Of the call.
        people: Patients.
        plans: Recordings.
        layout: Where they are written.
    """
    return {
        "version": FORMAT,
        "notice": RESEARCH_ONLY,
        "options": options,
        "patients": [asdict(person) for person in people],
        "recordings": [_truth(plan, layout.name(plan)) for plan in plans],
    }


def _truth(plan: Timeline, name: str) -> dict[str, Any]:
    seizures = [
        {"onset": s.onset, "offset": s.offset, "recruited": plain(recruited(plan, s))}
        for s in plan.seizures
    ]
    return {
        "name": name,
        "patient": plan.patient.number,
        "seconds": plan.seconds,
        "seizures": seizures,
        "events": [asdict(event) for event in plan.events],
    }


def write(plans: Sequence[Timeline], layout: Layout) -> int:
    """Draw and write the recordings that are not there yet; gives how many were.

    Args:
        plans: All recordings.
        layout: Where to.
    """
    missing = [plan for plan in plans if not layout.finished(plan)]

    def written() -> Iterator[Timeline]:
        for plan in missing:
            layout.write(plan, draw(plan, layout.rate))
            yield plan

    for _ in console.progress(written(), "simulating recordings", len(missing)):
        pass
    return len(plans) - len(missing)


def summary(plans: Sequence[Timeline], patients: int, kept: int, out: Path) -> str:
    """What was written, in a line."""
    seizures = sum(len(plan.seizures) for plan in plans)
    hours = sum(plan.seconds for plan in plans) / 3600
    there = f", {kept} were there already" if kept else ""
    return (
        f"{len(plans)} recordings of {patients} patients ({hours:.1f} h, {seizures} seizures"
        f"{there}): {out}"
    )
