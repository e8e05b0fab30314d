"""Simulated recordings as BIDS-iEEG: EDF with tables of channels and seizures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import edfio
import numpy as np
import pandas as pd

from manyhead.mvpformer.events.tsv import NONE, write_events
from manyhead.mvpformer.simulate.layout import ABOUT, NAME, Layout
from manyhead.mvpformer.simulate.neural_mass import Potential
from manyhead.mvpformer.simulate.signals import HIGH_PASS, RANGE, RESOLUTION
from manyhead.mvpformer.simulate.timeline import Timeline
from manyhead_core.evaluate.files import replace, replace_json, replace_text
from manyhead_core.training.results import RESEARCH_ONLY

TASK = "szMonitoring"
VERSION = "1.9.0"
# The standard knows no such file at the top.
IGNORED = "simulation.json\n"


class BidsLayout(Layout):
    """A BIDS data set, one session for each patient and one run for each recording."""

    def name(self, plan: Timeline) -> str:
        """Entities of a recording."""
        return f"{subject(plan)}_ses-01_task-{TASK}_run-{plan.number + 1:02d}"

    def _file(self, plan: Timeline, end: str) -> Path:
        return self.root / subject(plan) / "ses-01" / "ieeg" / f"{self.name(plan)}_{end}"

    def finished(self, plan: Timeline) -> bool:
        """Whether the signal is there, which is written last."""
        return self._file(plan, "ieeg.edf").is_file()

    def write(self, plan: Timeline, signal: Potential) -> None:
        """Write tables, description and signal of a recording."""
        names = [plan.patient.channels[k] for k in plan.patient.focus]
        write_events(
            self._file(plan, "events.tsv"),
            plan.seizures,
            plan.seconds,
            channels=[",".join(names)] * len(plan.seizures),
        )
        table = channel_table(plan, self.rate)
        replace(
            self._file(plan, "channels.tsv"),
            lambda file: table.to_csv(file, sep="\t", index=False, lineterminator="\n"),
        )
        replace_json(self._file(plan, "ieeg.json"), description(plan, self.rate))
        edf = to_edf(plan, signal, self.rate)
        replace(self._file(plan, "ieeg.edf"), lambda file: edf.write(file))

    def complete(self, plans: Sequence[Timeline]) -> None:
        """Write what describes the whole set."""
        replace_json(
            self.root / "dataset_description.json",
            {
                "Name": NAME,
                "BIDSVersion": VERSION,
                "DatasetType": "raw",
                "License": "CC0",
                "GeneratedBy": [{"Name": "manyhead mvpformer simulate"}],
            },
        )
        replace_text(self.root / "README", f"{ABOUT}\n\n{RESEARCH_ONLY.capitalize()}.\n")
        replace_text(self.root / ".bidsignore", IGNORED)
        people = {subject(plan): plan.patient.site for plan in plans}
        rows = [f"{who}\t{NONE}\t{NONE}\t{site}" for who, site in people.items()]
        lines = "\n".join(["participant_id\tage\tsex\tsite", *rows])
        replace_text(self.root / "participants.tsv", f"{lines}\n")


def subject(plan: Timeline) -> str:
    """Label of the patient."""
    return f"sub-{plan.patient.number + 1:02d}"


def channel_table(plan: Timeline, rate: int) -> pd.DataFrame:
    """Content of channels.tsv: types, units, status, and who belongs to the onset zone.

    Args:
        plan: Recording.
        rate: Samples per second, Hz.
    """
    patient = plan.patient
    about = [NONE] * len(patient.channels)
    for channel in patient.focus:
        about[channel] = "seizure onset zone"
    if patient.dead >= 0:
        about[patient.dead] = "flat: disconnected"
    return pd.DataFrame(
        {
            "name": patient.channels,
            "type": patient.kind,
            "units": "uV",
            "low_cutoff": HIGH_PASS,
            "high_cutoff": rate / 2,
            "group": [name.rstrip("0123456789") for name in patient.channels],
            "sampling_frequency": rate,
            "status": ["bad" if k == patient.dead else "good" for k in range(len(about))],
            "status_description": about,
        }
    )


def description(plan: Timeline, rate: int) -> dict[str, object]:
    """Content of ieeg.json.

    Args:
        plan: Recording.
        rate: Samples per second, Hz.
    """
    return {
        "TaskName": TASK,
        "TaskDescription": "simulated monitoring",
        "SamplingFrequency": rate,
        "PowerLineFrequency": plan.patient.line,
        "iEEGReference": "simulated: far from all contacts",
        "SoftwareFilters": NONE,
        "HardwareFilters": {"HighPass": {"CutoffHz": HIGH_PASS, "Order": 2}},
        "RecordingDuration": float(plan.seconds),
        "RecordingType": "continuous",
        f"{plan.patient.kind}ChannelCount": len(plan.patient.channels),
    }


def to_edf(plan: Timeline, signal: Potential, rate: int) -> edfio.Edf:
    """EDF of a recording without loss: one digit is `RESOLUTION` µV, a record one second.

    Args:
        plan: Recording.
        signal: In µV, `(channels, samples)`.
        rate: Samples per second, Hz.
    """
    signals = [
        edfio.EdfSignal.from_digital(
            np.rint(values / RESOLUTION).astype(np.int16),
            rate,
            label=name,
            physical_dimension="uV",
            physical_range=(-RANGE, RANGE - RESOLUTION),
            prefiltering=f"HP:{HIGH_PASS}Hz",
        )
        for name, values in zip(plan.patient.channels, signal, strict=True)
    ]
    return edfio.Edf(signals, data_record_duration=1)
