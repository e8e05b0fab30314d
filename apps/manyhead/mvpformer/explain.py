"""The command `explain`: where a network looked when it found a seizure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from manyhead.mvpformer.attention import Method, WindowAttention, sites_of, window_attention
from manyhead.mvpformer.attention_picture import attention_picture
from manyhead.mvpformer.claim import Finished, claim
from manyhead.mvpformer.detector import Detector, Recordings, setup_of
from manyhead.mvpformer.events.postprocess import PostOptions, detect, marked
from manyhead.mvpformer.pictures import save
from manyhead.mvpformer.predict import Found, Recorded
from manyhead.mvpformer.preparing import Prepared
from manyhead.mvpformer.preparing.options import Montage
from manyhead.mvpformer.readers import ReadOptions
from manyhead.mvpformer.stream import Stream
from manyhead.mvpformer.windows import Windows
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.data.batch import Outcome
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.files import replace
from manyhead_core.training.results import RESEARCH_ONLY

TOP_CHANNELS = 10


def explain(
    app: App,
    weights: str,
    input: Path,
    out: Path,
    recording: list[str] | None = None,
    times: list[float] | None = None,
    predictions: Path | None = None,
    method: Method = "attention",
    orders: int = 1,
    seed: int = 0,
    threshold: float | None = None,
    format: str = "auto",
    units: str = "auto",
    montage: Montage | None = None,
    channels: str | None = None,
    band: tuple[float, float] | None = None,
    notch: float | None = None,
    batch_windows: int = 8,
    device: str = "cpu",
    strict: bool = False,
    overwrite: bool = False,
) -> int:
    """Show where a network looked at each detection: over time, channels and their distance.

    Takes the step of the highest probability in each detection, or those of `times`, and the
    attention of its newest segment, the mean over channels and heads. Writes for each a picture
    ID_K.png and a table ID_K.csv with all layers, for each recording ID.json. Attention is no
    proof of what a decision rests on.

    Args:
        app: The app.
        weights: Weights folder, run folder, checkpoint file or hub id.
        input: Recording, or folder of recordings.
        out: Folder of the results, new or of the same weights and options.
        recording: Ids of the recordings to explain; default: all.
        times: Moments to explain in s from the start, in place of detections.
        predictions: Folder that `predict` wrote, to take probabilities from.
        method: `attention` shows the mean over the layers; `rollout` multiplies the layers, with
            memory for all pairs of segments and channels.
        orders: Orders of the channels to average over: that of the file and random ones.
        seed: Of the orders.
        threshold: Probability above which a step is positive; default: that of the training.
        format: How the recordings lie on disk; `auto` finds it.
        units: Unit of the stored numbers: `auto`, `V`, `mV`, `uV` or `nV`.
        montage: Reference; default: as in the training.
        channels: Names with commas in between, or a rule; default: as in the training.
        band: Lowest and highest frequency to keep, Hz; default: as in the training.
        notch: Mains frequency to take out, Hz; default: as in the training.
        batch_windows: Windows that the network is given at a time.
        device: `cpu`, `cuda` or `cuda:1`.
        strict: Exit with code 2 when one recording failed.
        overwrite: Replace results of other weights or options in the folder.
    """
    prepare = {"montage": montage, "channels": channels, "band": band, "notch": notch}
    detector = Detector.load(app, weights, device).changed(**prepare)
    sites_of(detector.net)
    if times is None:
        detector.need_classes()
    if predictions is not None and not predictions.is_dir():
        raise ConfigError(f"predictions: no folder {predictions}; pass what predict wrote")
    stream = Stream(
        net=detector.net,
        options=detector.preprocessor.windows,
        batch_windows=batch_windows,
        orders=orders,
        seed=seed,
    )
    read = ReadOptions(units=units)  # type: ignore[arg-type]  # checked there
    found = Recordings.find(input, format, read, detector.preprocessor.prepare, recording or ())
    post = detector.post(threshold=threshold)
    setup: dict[str, Any] = {"method": method, "times": times, "orders": orders, "seed": seed}
    setup |= {"post": asdict(post), **setup_of(detector, found)}
    finished = Finished(out, claim(out, "explain", setup, overwrite=overwrite), found.digest)
    if overwrite:
        finished.forget(found.sources)
    moments = None if times is None else tuple(times)
    work = Explain(finished, detector, found, stream, post, method, moments, predictions)
    batch = Recorded(work, out, "explaining recordings", lambda name: bool(finished.about(name)))
    code = batch.run({name: name for name in found.sources}, strict=strict)
    console.result(RESEARCH_ONLY)
    return code


@dataclass(frozen=True)
class Explain:
    """Explains one recording after the other.

    Args:
        finished: Recordings that are done.
        detector: Network and threshold.
        recordings: Where they come from.
        stream: Looks at the windows.
        post: How probabilities become seizures.
        method: Of attention.
        times: Moments to explain in s; None takes the detections.
        predictions: Folder of `predict`, or None.
    """

    finished: Finished
    detector: Detector
    recordings: Recordings
    stream: Stream
    post: PostOptions
    method: Method = "attention"
    times: tuple[float, ...] | None = None
    predictions: Path | None = None

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
            chosen = self._chosen(name, prepared, windows)
            seen = window_attention(self.stream, prepared, windows[chosen], self.method)
            rows = [
                self._write(name, number, prepared, float(windows.step_stop[step]), one)
                for number, (step, one) in enumerate(zip(chosen, seen, strict=True), start=1)
            ]
            about = {"warnings": warnings, "preparing": prepared.manifest(), "explained": rows}
            self.finished.write(name, about)
            seizures = prepared.info.seizures
            annotated = None if seizures is None else len(seizures)
            return Found("ok", len(windows), len(rows), annotated)

    def _chosen(self, name: str, prepared: Prepared, windows: Windows) -> npt.NDArray[np.int64]:
        """Numbers of the windows to explain, rising."""
        start, stop = windows.step_start, windows.step_stop
        if self.times is not None:
            return np.unique([_step_at(name, time, start, stop) for time in self.times])
        probability = self._probability(name, prepared, windows)
        events = detect(probability, start, stop, self.post)
        best = [np.where(marked(start, stop, [e]), probability, -1.0).argmax() for e in events]
        return np.unique(np.array(best, np.int64))

    def _probability(
        self, name: str, prepared: Prepared, windows: Windows
    ) -> npt.NDArray[np.float64]:
        if self.predictions is None:
            return np.concatenate(list(self.stream.probabilities(prepared, windows)))
        path = self.predictions / f"{name}_steps.tsv"
        try:
            table = pd.read_csv(path, sep="\t")
            time, found = (table[column].to_numpy(np.float64) for column in ("time", "p"))
        except (OSError, KeyError, ValueError) as err:
            raise DataError(f"{name}: {path.name} is not in the folder of --predictions") from err
        fits = len(time) == len(windows) and np.allclose(time, windows.step_stop, atol=2e-3)
        if not fits:
            raise DataError(f"{name}: {path.name} was made with other windows; leave it out")
        return found

    def _write(
        self, name: str, number: int, prepared: Prepared, time: float, found: WindowAttention
    ) -> Mapping[str, Any]:
        out, options = self.finished.out, self.stream.options
        chance = "" if math.isnan(found.probability) else f", probability {found.probability:.3f}"
        title = f"{self.method} of the step that ends at {time:g} s{chance}"
        seconds = options.segment_seconds
        save(
            attention_picture(found, prepared.channels, seconds, title),
            out / f"{name}_{number}.png",
        )
        table = attention_table(found, prepared.channels, seconds)
        replace(
            out / f"{name}_{number}.csv",
            lambda path: table.to_csv(path, index=False, float_format="%.6g"),
        )
        shares = found.shown.sum(0)
        best = np.argsort(-shares, kind="stable")[:TOP_CHANNELS]
        return {
            "number": number,
            "step_stop_s": time,
            "probability": found.probability,
            "channels": {prepared.channels[k]: float(shares[k]) for k in best},
            "segments": found.shown.sum(1),
            "distance": found.distance,
        }


def attention_table(
    found: WindowAttention, channels: tuple[str, ...], segment_seconds: float
) -> pd.DataFrame:
    """A row for each segment and channel: begin before the end of the step in s, and shares.

    Args:
        found: Of a window.
        channels: Names, in order.
        segment_seconds: Length of a segment, s.
    """
    segments, number = found.shown.shape
    before = segment_seconds * np.arange(-segments, 0)
    columns: dict[str, Any] = {"time": np.repeat(before, number)}
    columns["channel"] = np.tile(np.array(channels, dtype=object), segments)
    columns["shown"] = found.shown.ravel()
    columns |= {f"layer_{k}": layer.ravel() for k, layer in enumerate(found.layers, start=1)}
    return pd.DataFrame(columns)


def _step_at(
    name: str, time: float, start: npt.NDArray[np.float64], stop: npt.NDArray[np.float64]
) -> int:
    inside = np.flatnonzero((start <= time) & (time < stop))
    if not len(inside):
        raise DataError(
            f"{name}: times: no step holds {time:g} s; there are steps from {start[0]:g} to "
            f"{stop[-1]:g} s, without gaps"
        )
    return int(inside[0])
