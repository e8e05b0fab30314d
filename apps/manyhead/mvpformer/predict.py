"""The command `predict`: seizures in recordings, with the probability of every step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from manyhead.mvpformer.claim import Finished, claim
from manyhead.mvpformer.detector import Detector, Recordings, setup_of
from manyhead.mvpformer.events.postprocess import PostOptions, detect, marked
from manyhead.mvpformer.events.szcore import EventScore, ScoreOptions, Tally, score_events
from manyhead.mvpformer.events.tsv import write_events, write_steps
from manyhead.mvpformer.pictures import write_picture
from manyhead.mvpformer.preparing import Prepared
from manyhead.mvpformer.preparing.options import Montage
from manyhead.mvpformer.readers import ReadOptions
from manyhead.mvpformer.readers.options import SEIZURE_PATTERN
from manyhead.mvpformer.recording import Interval
from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.windows import Windows
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.data.batch import Batch, Outcome
from manyhead_core.training.results import RESEARCH_ONLY

# Recordings with more steps say how far they are.
LONG = 500


def predict(
    app: App,
    weights: str,
    input: Path,
    out: Path,
    format: str = "auto",
    units: str = "auto",
    seizures: Path | None = None,
    pattern: str = SEIZURE_PATTERN,
    keep_bad: bool = False,
    zeros: str = "refuse",
    channels: str | None = None,
    max_channels: int | None = None,
    montage: Montage | None = None,
    notch: float | None = None,
    band: tuple[float, float] | None = None,
    threshold: float | None = None,
    median: int | None = None,
    merge_s: float | None = None,
    min_s: float | None = None,
    orders: int = 1,
    seed: int = 0,
    batch_windows: int = 8,
    device: str = "cpu",
    pictures: bool = True,
    overwrite: bool = False,
    strict: bool = False,
) -> int:
    """Find seizures in recordings; annotations are not needed, but scored where there are some.

    Writes for each recording the seizures found (ID_events.tsv, as SzCORE has it), the probability
    of every step (ID_steps.tsv), a picture (ID.png) and what was done to it (ID.json); over all
    report.csv and manifest.json. A recording that cannot be used is listed and the rest goes on. A
    second start goes on where the first was stopped, within a long recording too.

    Args:
        app: The app.
        weights: Weights folder, run folder, checkpoint file or hub id.
        input: Recording, or folder of recordings.
        out: Folder of the results, new or of the same weights and options.
        format: How the recordings lie on disk; `auto` finds it.
        units: Unit of the stored numbers: `auto`, `V`, `mV`, `uV` or `nV`.
        seizures: Table or folder of tables of the true seizures, in place of what the files say.
        pattern: Regular expression that finds seizures in free text of the files.
        keep_bad: Keep channels that the file calls bad.
        zeros: Long stretches of zeros: `refuse` them, or `keep` them as gaps.
        channels: Channels by name with commas in between, or a rule; default: as in the training.
        max_channels: Most channels that a rule takes; default: as in the training.
        montage: Reference; default: as in the training.
        notch: Mains frequency to take out, Hz; default: as in the training.
        band: Lowest and highest frequency to keep, Hz; default: as in the training.
        threshold: Probability above which a step is positive; default: that of the training.
        median: Steps of the moving median; default: as in the training.
        merge_s: Detections less than so many s apart become one; default: as in the training.
        min_s: Detections shorter than so many s are dropped; default: as in the training.
        orders: Orders of the channels over which probabilities are averaged: that of the file and
            so many less one drawn at random; for files whose order means nothing.
        seed: Of the orders.
        batch_windows: Windows that the network is given at a time.
        device: `cpu`, `cuda` or `cuda:1`.
        pictures: Draw each recording.
        overwrite: Replace results of other weights or options in the folder.
        strict: Exit with code 2 when one recording failed.
    """
    detector = Detector.load(app, weights, device).changed(
        channels=channels, max_channels=max_channels, montage=montage, notch=notch, band=band
    )
    detector.need_classes()
    post = detector.post(threshold=threshold, median=median, merge_s=merge_s, min_s=min_s)
    options = detector.preprocessor.windows
    stream = Stream(
        net=detector.net, options=options, batch_windows=batch_windows, orders=orders, seed=seed
    )
    read = ReadOptions(
        units=units,  # type: ignore[arg-type]  # checked there
        seizures=seizures,
        pattern=pattern,
        keep_bad=keep_bad,
        zeros=zeros,  # type: ignore[arg-type]
    )
    found = Recordings.find(input, format, read, detector.preprocessor.prepare)
    setup = setup_of(detector, found) | {"post": asdict(post), "orders": orders, "seed": seed}
    if detector.calibration is not None:
        setup["calibration"] = asdict(detector.calibration)
    finished = Finished(out, claim(out, "predict", setup, overwrite=overwrite), found.digest)
    work = Predict(out, finished, detector, found, stream, post, pictures)
    if overwrite:
        finished.forget(found.sources)
    code = Recorded(work, out, "looking for seizures", work.done).run(
        {name: name for name in found.sources}, strict=strict
    )
    work.show(found.sources)
    console.result(RESEARCH_ONLY)
    return code


@dataclass(frozen=True)
class Found(Outcome):
    """What has become of a recording.

    Args:
        steps: Decisions.
        found: Seizures that were detected.
        annotated: Seizures that are annotated; None where nobody annotated.
        hits: Pieces of annotated seizures that were found, as SzCORE counts them.
        false_alarms: Detected pieces without a match.
    """

    steps: int | None = None
    found: int | None = None
    annotated: int | None = None
    hits: int | None = None
    false_alarms: int | None = None


class Recorded(Batch[str]):
    """Work on many recordings."""

    things: ClassVar[str] = "recordings"
    outcome: ClassVar[type[Outcome]] = Found


@dataclass(frozen=True)
class Predict:
    """Detects in one recording after the other.

    Args:
        out: Folder of the results.
        finished: Recordings that are done.
        detector: Network and threshold.
        recordings: Where they come from.
        stream: Looks at the windows.
        post: How probabilities become seizures.
        pictures: Whether to draw.
    """

    out: Path
    finished: Finished
    detector: Detector
    recordings: Recordings
    stream: Stream
    post: PostOptions
    pictures: bool = True

    def __call__(self, name: str) -> Outcome:
        """Work on a recording.

        Args:
            name: Its id.
        """
        self.finished.need_same(name)
        with self.recordings.opened(name) as prepared:
            warnings = self.detector.warnings(prepared)
            self.recordings.tell(prepared, warnings)
            windows = self.stream.windows(prepared)
            key = f"{self.finished.key} {self.finished.digest(name)} {prepared.channels}"
            journal = Journal(self.out, name, f"{key} {len(windows)}")
            probability = self._probability(prepared, windows, journal)
            return self._write(name, prepared, windows, probability, warnings, journal)

    def done(self, name: str) -> bool:
        """Whether an earlier start with the same set-up has finished a recording."""
        drawn = not self.pictures or (self.out / f"{name}.png").is_file()
        return bool(self.finished.about(name)) and drawn

    def show(self, names: Mapping[str, Any]) -> None:
        """Print the score over the recordings that are annotated.

        Args:
            names: Their ids.
        """
        tallies = [
            Tally(**about) for name in names if (about := self.finished.about(name).get("score"))
        ]
        if not tallies:
            return
        score = EventScore(Tally(*(sum(column) for column in zip(*tallies, strict=True))))
        true, hits, alarms, seconds = score.tally
        share = "n/a" if math.isnan(score.sensitivity) else f"{score.sensitivity:.3f}"
        console.result(
            f"annotated: {len(tallies)} recordings, {seconds / 3600:.3g} h; sensitivity {share} "
            f"({hits} of {true}), {score.alarms_per_day:.3g} false alarms a day ({alarms})"
        )
        console.result(f"a hit: {ScoreOptions().describe()}")

    def _probability(
        self, prepared: Prepared, windows: Windows, journal: Journal
    ) -> npt.NDArray[np.float64]:
        parts = self.stream.probabilities(prepared, windows, len(journal.values))
        for part in spoken(parts, prepared.info.id, len(windows), len(journal.values)):
            journal.add(part)
        return np.array(journal.values, np.float64)

    def _write(
        self,
        name: str,
        prepared: Prepared,
        windows: Windows,
        probability: npt.NDArray[np.float64],
        warnings: list[str],
        journal: Journal,
    ) -> Found:
        start, stop, info = windows.step_start, windows.step_stop, prepared.info
        events = detect(probability, start, stop, self.post)
        hits = marked(start, stop, events)
        more: dict[str, npt.ArrayLike] = {"start": np.round(start, 3), "detected": hits.astype(int)}
        if self.detector.calibration is not None:
            more["calibrated_p"] = np.round(self.detector.calibration.apply(probability), 6)
        write_steps(self.out / f"{name}_steps.tsv", stop, probability, more)
        best = [float(probability[marked(start, stop, [event])].max()) for event in events]
        write_events(self.out / f"{name}_events.tsv", events, prepared.duration, confidence=best)
        if self.pictures:
            write_picture(
                self.out / f"{name}.png",
                prepared,
                start,
                stop,
                probability,
                self.post.threshold,
                events,
            )
        score = scored(info.seizures, events, prepared.duration)
        about = {
            "duration_s": prepared.duration,
            "steps": len(windows),
            "warnings": warnings,
            "preparing": prepared.manifest(),
            "score": None if score is None else score._asdict(),
        }
        self.finished.write(name, about)
        journal.close()
        counts = (None, None) if score is None else (score.hits, score.alarms)
        annotated = None if info.seizures is None else len(info.seizures)
        return Found("ok", len(windows), len(events), annotated, *counts)


class Journal:
    """Probabilities that are on disk as soon as they are known, so that a second start goes on.

    Args:
        out: Folder of the results.
        name: Id of the recording.
        key: All that decides the probabilities.
    """

    def __init__(self, out: Path, name: str, key: str) -> None:
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        self.path = out / f".{name}.{digest}.partial"
        self.values: list[float] = []
        if self.path.is_file():
            text = self.path.read_text(encoding="ascii", errors="replace")
            # The last line of a killed process may be cut anywhere.
            whole = text[: text.rfind("\n") + 1]
            self.values = [float(line) for line in whole.split()]
            self.path.write_text(whole, encoding="ascii")

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Write the next ones."""
        numbers = values.tolist()
        self.values += numbers
        with self.path.open("a", encoding="ascii") as file:
            file.writelines(f"{number!r}\n" for number in numbers)

    def close(self) -> None:
        """The recording is done."""
        self.path.unlink(missing_ok=True)


def scored(
    seizures: tuple[Interval, ...] | None, events: list[Interval], duration: float
) -> Tally | None:
    """Counts of the events of a recording, or None where nobody annotated it.

    Args:
        seizures: Annotated, s.
        events: Detected, s.
        duration: Of the recording, s.
    """
    if seizures is None:
        return None
    return score_events(seizures, events, duration).tally


def spoken(
    parts: Iterator[npt.NDArray[np.float64]], name: str, total: int, done: int = 0
) -> Iterator[npt.NDArray[np.float64]]:
    """The parts, and for a long recording a line every tenth of it.

    Args:
        parts: Of the steps, one after the other.
        name: Id of the recording.
        total: Steps.
        done: Those that an earlier start has finished.
    """
    if done:
        console.say(f"{name}: {done} of {total} steps are done already")
    for part in parts:
        yield part
        before, done = 10 * done // total, done + len(part)
        if total > LONG and 10 * done // total > before:
            console.say(f"{name}: {done} of {total} steps ({100 * done // total} %)")
