"""Recordings for training: found, prepared, cut into windows, split by patient."""

from __future__ import annotations

from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule

from manyhead.mvpformer.events.postprocess import PostOptions
from manyhead.mvpformer.loader import WindowLoader
from manyhead.mvpformer.preparing import ChannelContract, PrepareOptions
from manyhead.mvpformer.preprocessor import CLASSES, SeizurePreprocessor
from manyhead.mvpformer.readers.options import SEIZURE_PATTERN, ReadOptions
from manyhead.mvpformer.sampling import SamplingOptions
from manyhead.mvpformer.signals import Gathered, gather
from manyhead.mvpformer.splits import PARTS, SplitOptions, assign
from manyhead.mvpformer.tracks import Track, WindowSet
from manyhead.mvpformer.windows import WindowOptions, index_windows
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.files import replace
from manyhead_core.training.random_state import run_seed


class RecordingData(LightningDataModule):
    """Recordings as windows of segments, labelled by the state of the newest segment.

    Args:
        root: Folder of recordings: BIDS, SWEC, EDF, BrainVision, FIF, MATLAB or npz.
        format: `auto` looks at the files; otherwise the name of a format.
        patient: Regular expression that finds the patient in the path of a file below `root`, where
            the layout does not say it; its first group counts.
        include: Regular expression; only recordings with a match in their id are used.
        target: `classes` trains on annotated recordings; `next_token` pre-trains on all. The same
            as `model.net.target`.
        seizures: Table or folder with seizure times, in place of what the files say.
        units: Unit of the stored numbers; `auto` believes the files.
        pattern: Regular expression that finds seizures in the text of annotations.
        keep_bad: Keep channels that the files call bad.
        zeros: `refuse` or `keep` long stretches in which all channels are zero.
        rate: Samples per second that the network takes, Hz.
        mode: `reference` resamples and lays windows as the authors' code does.
        resample: `band_limited`, or `linear`, which lets higher frequencies fold back.
        notch: Mains frequency to take out, 50 or 60 Hz; 0 leaves it.
        band: Lowest and highest frequency that is kept, Hz; 0 is open.
        montage: `none`, `average`, `median` or `bipolar`.
        channels: `all`, `first`, `even`, `variance`, `kurtosis`, or names with commas between.
            Recordings of a patient get the channels that the first one gets.
        max_channels: Most channels of a recording.
        flat: `keep` or `drop` channels without any signal.
        num_segments: Segments of a window.
        segment_seconds: Length of a segment, s.
        stride_seconds: From one window to the next, s.
        train_stride_seconds: The same in training, s; 0 takes `stride_seconds`.
        padding: `repeat` the first segment so that early ones get decisions, or `none`.
        split: `random`, `fold`, `official`, `column` (of participants.tsv), or a split file
            (.json, .csv, .tsv).
        fractions: Share of train, validation and test of `random`, counted in patients.
        folds: Number of folds.
        fold: Fold that tests, from 0; the next ones validate.
        validation_folds: How many validate; with 0 the last epoch is tested.
        split_column: Column of the part in a table.
        split_seed: Seed of the split; None takes that of the run.
        shared_patients: `refuse` splits with a patient in two parts, `drop` their recordings from
            the later part, or `keep` them.
        batch_windows: Windows of a training batch.
        eval_batch_windows: Windows of a batch in evaluation.
        patients_per_batch: Patients of a training batch. Windows with different numbers of
            channels are cut to the smallest, to neighbouring channels drawn anew each time.
        sampling: `balanced` draws as many training windows with seizures as without.
        slow_down: Take a smaller stride around seizures in training.
        batches_per_epoch: Training batches of an epoch; 0 takes as many as the windows fill.
        train_channels: Most channels of a training batch; 0 takes all.
        median: Length of the moving median over decisions, odd.
        merge_s: Detections closer than so many s are joined.
        min_s: Detections shorter than so many s are dropped.
        cache: Folder for prepared signals, `memory`, or `none` to prepare at every read.
        threads: Threads that read.

    Raises:
        ConfigError: Options that contradict each other.
        DataError: Data that are missing or not what was expected.
    """

    def __init__(
        self,
        root: Path,
        format: str = "auto",
        patient: str = "",
        include: str = "",
        target: Literal["classes", "next_token"] = "classes",
        seizures: Path | None = None,
        units: Literal["auto", "V", "mV", "uV", "nV"] = "auto",
        pattern: str = SEIZURE_PATTERN,
        keep_bad: bool = False,
        zeros: Literal["refuse", "keep"] = "refuse",
        rate: float = 512.0,
        mode: Literal["default", "reference"] = "default",
        resample: Literal["band_limited", "linear"] = "band_limited",
        notch: float = 0.0,
        band: tuple[float, float] = (0.0, 0.0),
        montage: Literal["none", "average", "median", "bipolar"] = "none",
        channels: str = "all",
        max_channels: int = 128,
        flat: Literal["keep", "drop"] = "keep",
        num_segments: int = 25,
        segment_seconds: float = 5.0,
        stride_seconds: float = 5.0,
        train_stride_seconds: float = 0.0,
        padding: Literal["repeat", "none"] = "repeat",
        split: str = "random",
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        folds: int = 5,
        fold: int = 0,
        validation_folds: int = 1,
        split_column: str = "split",
        split_seed: int | None = 0,
        shared_patients: Literal["refuse", "drop", "keep"] = "refuse",
        batch_windows: int = 8,
        eval_batch_windows: int = 8,
        patients_per_batch: int = 1,
        sampling: Literal["uniform", "balanced"] = "uniform",
        slow_down: bool = False,
        batches_per_epoch: int = 0,
        train_channels: int = 0,
        median: int = 3,
        merge_s: float = 0.0,
        min_s: float = 0.0,
        cache: str = "memory",
        threads: int = 1,
    ) -> None:
        super().__init__()
        at_least = {
            "eval_batch_windows": (eval_batch_windows, 1),
            "train_channels": (train_channels, 0),
            "threads": (threads, 1),
            "train_stride_seconds": (train_stride_seconds, 0),
        }
        for name, (number, least) in at_least.items():
            if number < least:
                raise ConfigError(f"data.{name}: must be at least {least}, got {number}")
        if target == "next_token" and (slow_down or sampling == "balanced"):
            raise ConfigError(
                "data.target: next_token looks at no seizures; leave data.sampling uniform and "
                "data.slow_down false"
            )
        if target == "next_token" and num_segments < 2:
            raise ConfigError(
                "data.num_segments: next_token needs 2 or more, or nothing comes next; got 1"
            )
        self.root, self.format, self.target, self.cache = Path(root), format, target, cache
        self.patient, self.include = patient, include
        self.read = ReadOptions(
            units=units, seizures=seizures, pattern=pattern, keep_bad=keep_bad, zeros=zeros
        )
        self.preparing = PrepareOptions(
            rate=rate,
            mode=mode,
            resample=resample,
            notch=notch,
            band=band,
            montage=montage,
            channels=channels,
            max_channels=max_channels,
            flat=flat,
        )
        self.layout = WindowOptions(
            num_segments=num_segments,
            segment_seconds=segment_seconds,
            stride_seconds=stride_seconds,
            padding=padding,
            mode=mode,
        )
        training_stride = train_stride_seconds or stride_seconds
        self.training_layout = replace_fields(self.layout, stride_seconds=training_stride)
        self.segment_samples = self.layout.segment_samples(rate)
        self.split = SplitOptions(
            by=split,
            fractions=fractions,
            folds=folds,
            fold=fold,
            validation_folds=validation_folds,
            column=split_column,
            shared=shared_patients,
            seed=run_seed() if split_seed is None else split_seed,
        )
        self.sampling = SamplingOptions(
            batch_windows=batch_windows,
            patients_per_batch=patients_per_batch,
            balanced=sampling == "balanced",
            batches_per_epoch=batches_per_epoch,
        )
        self.post = PostOptions(median=median, merge_s=merge_s, min_s=min_s)
        self.eval_batch_windows, self.train_channels = eval_batch_windows, train_channels
        self.slow_down, self.threads = slow_down, threads
        self.windows: WindowSet | None = None
        self.frame = pd.DataFrame()
        self.left_out: dict[str, str] = {}
        self.parts: dict[str, np.ndarray] = {}
        self.preprocessor: SeizurePreprocessor | None = None

    def prepare(self) -> None:
        """Find and open the recordings, lay the windows, split; further calls do nothing."""
        if self.windows is not None:
            return
        found = gather(
            self.root,
            self.format,
            self.read,
            self.preparing,
            cache=self.cache,
            patient=self.patient,
            include=self.include,
        )
        tracks = self._tracks(found)
        self.frame, self.left_out = found.frame, found.left_out
        codes = assign(found.frame, self.split, self.root)
        self.parts = {name: np.flatnonzero(codes == k) for k, name in enumerate(PARTS)}
        windows = self._set(tracks)
        self._check_training(windows)
        self.preprocessor = SeizurePreprocessor(
            windows=self.layout,
            prepare=self.preparing,
            post=self.post,
            contract=ChannelContract.of([tracks[k].signal for k in self.parts["train"]]),
        )
        self.windows = windows
        self._tell(windows)

    def _tell(self, windows: WindowSet) -> None:
        """Say what a user would otherwise find out too late."""
        label = windows.label[windows.of(self.parts["validation"])]
        if self.target == "classes" and self.validates and not label.any():
            console.say(
                "the validation part holds no seizure: the loss selects the epoch, and the "
                "threshold is not chosen; use another data.split"
            )
        unused = set(range(len(self.frame))) - {
            int(k) for part in self.parts.values() for k in part
        }
        for name in sorted(self.frame["id"].iloc[sorted(unused)]):
            self.left_out[name] = "in no part of the split"
        if self.left_out:
            first, reason = next(iter(self.left_out.items()))
            console.say(f"{len(self.left_out)} recordings are left out, first {first}: {reason}")

    def _tracks(self, found: Gathered) -> list[Track]:
        """Windows of the recordings that have some; the others are left out."""
        tracks, kept = [], []
        for row, (signal, patient) in enumerate(
            zip(found.signals, found.frame["patient"], strict=True)
        ):
            info = signal.info
            windows = index_windows(signal.duration, info.seizures or (), info.gaps, self.layout)
            reason = ""
            if not len(windows):
                needed = self.layout.segment_seconds if self.layout.pads else self.layout.seconds
                reason = f"{signal.duration:.1f} s without a stretch of {needed:g} s"
            elif self.target == "classes" and info.seizures is None:
                reason = "nobody annotated its seizures"
            if reason:
                found.left_out[info.id] = reason
                continue
            tracks.append(Track(signal, str(patient), windows))
            kept.append(row)
        if not tracks:
            first, reason = next(iter(found.left_out.items()))
            raise DataError(
                f"data.root: none of {len(found.left_out)} recordings can be used; {first}: "
                f"{reason}"
            )
        found.frame = found.frame.iloc[kept].reset_index(drop=True)
        return tracks

    def _set(self, tracks: list[Track]) -> WindowSet:
        return WindowSet(tracks, self.layout.num_segments, self.segment_samples)

    def _check_training(self, windows: WindowSet) -> None:
        train = self.parts["train"]
        if not len(train):
            raise DataError(
                f"data.split: none of {len(self.frame)} recordings trains; choose another split"
            )
        label = windows.label[windows.of(train)]
        if self.target == "classes" and len(np.unique(label)) < 2:
            raise DataError(
                f"data.split: all {len(label)} training windows are {CLASSES[label[0]]}; choose "
                "another split, or check the annotations with inspect"
            )

    def net_overrides(self) -> dict[str, Any]:
        """Sizes of the network that follow from the data."""
        return {
            "segment_samples": self.segment_samples,
            "num_classes": len(CLASSES),
            "target": self.target,
        }

    def setup(self, stage: str) -> None:
        """Make sure that the parts of this stage are not empty."""
        self._prepared()
        needed = {"validate": "validation", "test": "test"}.get(stage)
        if needed and not len(self.parts[needed]):
            raise DataError(
                f"data.split: no recording of {len(self.frame)} is in the {needed} part; choose "
                "another split, other fractions, or more patients"
            )

    def train_dataloader(self) -> WindowLoader:
        """Training batches, drawn anew for each epoch."""
        return self._loader(self._training(), "train", self.sampling)

    def val_dataloader(self) -> WindowLoader | list[Any]:
        """Validation windows in order; nothing where no part validates."""
        windows = self._prepared()
        return self._loader(windows, "validation") if self.validates else []

    def test_dataloader(self) -> WindowLoader:
        """Test windows in order."""
        return self._loader(self._prepared(), "test")

    @property
    def validates(self) -> bool:
        """Whether there is a validation part."""
        return bool(len(self.parts.get("validation", ())))

    def class_weights(self) -> torch.Tensor:
        """Inverse frequency of the classes as they are drawn, one on average over the windows."""
        if self.sampling.balanced:
            return torch.ones(len(CLASSES))
        windows = self._training()
        label = windows.label[windows.of(self.parts["train"])]
        count = np.bincount(label, minlength=len(CLASSES)).clip(1)
        return torch.tensor(len(label) / (len(CLASSES) * count), dtype=torch.float32)

    def about(self, numbers: list[int]) -> dict[str, list[Any]]:
        """What is known of windows, for the table of predictions.

        Args:
            numbers: Of windows in evaluation.
        """
        windows = self._prepared()
        chosen = np.asarray(numbers, np.int64)
        track, local = windows.track[chosen].tolist(), windows.local[chosen].tolist()
        rows = self.frame.iloc[track]
        found: dict[str, list[Any]] = {
            "id": [f"{name}:{step}" for name, step in zip(rows["id"], local, strict=True)],
            "group": rows["patient"].tolist(),
            "site": rows["site"].tolist(),
            "recording": rows["id"].tolist(),
        }
        columns = {
            "start": "step_start",
            "stop": "step_stop",
            "event_start": "event_start",
            "event_stop": "event_stop",
        }
        for name, attribute in columns.items():
            values = (getattr(windows.tracks[k].windows, attribute) for k in track)
            found[name] = [float(own[step]) for own, step in zip(values, local, strict=True)]
        return found

    def write_split(self, folder: Path) -> None:
        """Write `split.csv` with id and split, and `left_out.csv` with what is in no part.

        Args:
            folder: Where to; `data.split` reads `split.csv` again.
        """
        self._prepared()
        names = self.frame["id"].to_numpy()
        rows = [(names[k], part) for part, members in self.parts.items() for k in members]
        _write(Path(folder) / "split.csv", pd.DataFrame(rows, columns=["id", "split"]))
        if self.left_out:
            table = pd.DataFrame(self.left_out.items(), columns=["id", "reason"])
            _write(Path(folder) / "left_out.csv", table)

    def _prepared(self) -> WindowSet:
        self.prepare()
        assert self.windows is not None  # noqa: S101
        return self.windows

    def _training(self) -> WindowSet:
        """The same recordings with the windows of training."""
        windows, layout = self._prepared(), self.training_layout
        if layout == self.layout and not self.slow_down:
            return windows
        tracks = []
        for track in windows.tracks:
            info = track.signal.info
            about = track.duration, info.seizures or (), info.gaps
            more = index_windows(*about, layout, slow_down=self.slow_down)
            tracks.append(Track(track.signal, track.patient, more))
        return self._set(tracks)

    def _loader(
        self, windows: WindowSet, part: str, sampling: SamplingOptions | None = None
    ) -> WindowLoader:
        trainer, numbers = self.trainer, windows.of(self.parts[part])
        world = trainer.world_size if trainer else 1
        size = self.eval_batch_windows
        if sampling is None and world > 1:
            # Every process needs a batch: one that has none would not take part in the validation.
            size = min(size, len(numbers) // world)
            if not size:
                raise DataError(
                    f"trainer.devices: {len(numbers)} windows of {part} are too few for {world} "
                    "processes; use fewer"
                )
        return WindowLoader(
            windows,
            numbers,
            sampling=sampling,
            batch_windows=size,
            train_channels=self.train_channels,
            seed=run_seed(),
            rank=trainer.global_rank if trainer else 0,
            world_size=world,
            threads=self.threads,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )


def _write(path: Path, table: pd.DataFrame) -> None:
    replace(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))
