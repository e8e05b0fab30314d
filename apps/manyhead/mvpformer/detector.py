"""Weights ready for recordings that were never seen: how they are prepared, what they look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from manyhead.mvpformer.events.postprocess import PostOptions
from manyhead.mvpformer.patients import canonical_patient
from manyhead.mvpformer.preparing import Prepared, PrepareOptions, compare
from manyhead.mvpformer.preparing.choice import too_many
from manyhead.mvpformer.preprocessor import SeizurePreprocessor
from manyhead.mvpformer.readers import ReadOptions, Source, find_recordings, open_recording
from manyhead.mvpformer.readers.annotations import check_table
from manyhead.mvpformer.readers.files import digest
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import DataError, UserError, WeightsError
from manyhead_core.evaluate.calibration import Temperature
from manyhead_core.hub.loading import load_weights
from manyhead_core.hub.network import check_device, weights_digest

# Rules that look at the signal; all recordings of a patient take the channels of the first.
RANKED = ("variance", "kurtosis")
SHORT_DIGEST = 12


@dataclass(frozen=True)
class Detector:
    """A network with what it was trained with.

    Args:
        net: Any network of this app, in evaluation mode.
        preprocessor: Windows, preparing, post-processing and channels of the training.
        calibration: What `calibrate` has fitted, or None.
        digest: SHA-256 of the weights.
    """

    net: Any
    preprocessor: SeizurePreprocessor
    calibration: Temperature | None = None
    digest: str = ""

    @classmethod
    def load(cls, app: App, weights: str | Path, device: str = "cpu") -> Detector:
        """Take weights folder, checkpoint or run folder; see `load_weights`.

        Args:
            app: Row of the app.
            weights: Where they are.
            device: Where the network runs.

        Raises:
            WeightsError: There are none, or they cannot prepare recordings.
            ConfigError: There is no such device.
        """
        check_device(device)
        loaded = load_weights(app, weights)
        meta, tensors = loaded.need_preprocessor()
        if "windows" not in meta:
            raise WeightsError(
                f"weights: {loaded.source} was trained on tables, not on recordings; use it from "
                "Python"
            )
        fitted = meta.get("calibration")
        calibration = None if fitted is None else Temperature(**fitted)
        preprocessor = SeizurePreprocessor.from_state(meta, tensors)
        digest = weights_digest(loaded.net)
        return cls(loaded.net.to(device).eval(), preprocessor, calibration, digest)

    @property
    def threshold(self) -> float:
        """Probability from which a step counts as seizure, chosen by the training."""
        return float(self.net.threshold)

    def changed(self, **prepare: Any) -> Detector:
        """The same with other ways of preparing; None leaves what the training had.

        Args:
            **prepare: Fields of `PrepareOptions`.
        """
        given = {name: value for name, value in prepare.items() if value is not None}
        options = replace(self.preprocessor.prepare, **given)
        # A rule that chooses channels takes no more than the network does.
        rows = self.net.config.max_channels
        options = replace(options, max_channels=min(options.max_channels, rows))
        return replace(self, preprocessor=replace(self.preprocessor, prepare=options))

    def post(self, **given: Any) -> PostOptions:
        """How probabilities become seizures; None leaves what the training had.

        Args:
            **given: Fields of `PostOptions`.
        """
        changed = {name: value for name, value in given.items() if value is not None}
        return replace(self.preprocessor.post, **({"threshold": self.threshold} | changed))

    def need_classes(self) -> None:
        """Refuse a network that finds no seizures.

        Raises:
            WeightsError: It was trained for something else.
        """
        target = self.net.config.target
        if target != "classes":
            raise WeightsError(
                f"weights: were trained for {target} and know no seizures; fine-tune them with "
                "net.target classes first"
            )

    def warnings(self, prepared: Prepared) -> list[str]:
        """How the channels differ from those of the training.

        Args:
            prepared: A recording.

        Raises:
            DataError: There are more channels than the network takes, or another rate.
        """
        rows = self.net.config.max_channels
        if len(prepared.channels) > rows:
            raise too_many(prepared.info.id, len(prepared.channels), rows)
        contract = self.preprocessor.contract
        found = [] if contract is None else compare(contract, prepared)
        prefix = f"{prepared.info.id}: "
        return [text.removeprefix(prefix) for text in found]


@dataclass
class Recordings:
    """Recordings that were found, opened one at a time.

    Args:
        sources: By id, in order.
        read: How files are read.
        prepare: How signals are prepared.
    """

    sources: dict[str, Source]
    read: ReadOptions
    prepare: PrepareOptions
    _chosen: dict[str, PrepareOptions] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    @classmethod
    def find(
        cls,
        root: Path,
        format: str,
        read: ReadOptions,
        prepare: PrepareOptions,
        only: Sequence[str] = (),
    ) -> Recordings:
        """What a file or folder holds.

        Args:
            root: File or folder.
            format: Row of `FORMATS`.
            read: How files are read.
            prepare: How signals are prepared.
            only: Ids that are meant; empty means all.

        Raises:
            DataError: There is nothing, or none of that id.
        """
        if not root.exists():
            raise DataError(f"input: {root} does not exist; pass a recording or a folder of them")
        found = find_recordings(root, format, option="input")
        sources = {source.id: source for source in found}
        unknown = [name for name in only if name not in sources]
        if unknown:
            known = ", ".join(list(sources)[:3])
            raise DataError(f"recording: there is none called {unknown[0]}; there are {known}")
        if read.seizures is not None:
            for note in check_table(read.seizures, list(sources)):
                console.say(f"note: {note}")
        return cls({name: sources[name] for name in only or sources}, read, prepare)

    def digest(self, name: str) -> str:
        """What the file of a recording holds, shortened.

        Args:
            name: Its id.
        """
        return digest(self.sources[name].path)

    def tell(self, prepared: Prepared, warnings: Sequence[str]) -> None:
        """Say what is special about a recording; what others share is said with the first only.

        Args:
            prepared: The recording.
            warnings: How it differs from the training.
        """
        notes = [note for note in prepared.info.notes if note not in self._told]
        self._told.update(notes)
        if texts := [*warnings, *notes]:
            console.say(f"note: {prepared.info.id}: {'; '.join(texts)}")

    @contextmanager
    def opened(self, name: str) -> Iterator[Prepared]:
        """A prepared recording, closed again at the end.

        Args:
            name: Its id.

        Raises:
            DataError: It cannot be used.
        """
        source = self.sources[name]
        prepared = self._open(source, self._options(source))
        try:
            yield prepared
        finally:
            prepared.close()

    def _open(self, source: Source, options: PrepareOptions) -> Prepared:
        recording = open_recording(source, self.read)
        try:
            return Prepared(recording, options)
        except Exception:
            recording.close()
            raise

    def _options(self, source: Source) -> PrepareOptions:
        """A ranking chooses the channels of a patient once."""
        if self.prepare.channels not in RANKED:
            return self.prepare
        patient = canonical_patient(source.patient, source.format)
        if patient not in self._chosen:
            self._chosen[patient] = self._ranked(patient)
        return self._chosen[patient]

    def _ranked(self, patient: str) -> PrepareOptions:
        for source in self.sources.values():
            if canonical_patient(source.patient, source.format) != patient:
                continue
            try:
                first = self._open(source, self.prepare)
            except UserError:
                continue  # it has a failure of its own
            first.close()
            return self.prepare.with_names(first.channels)
        return self.prepare


def setup_of(detector: Detector, recordings: Recordings) -> dict[str, Any]:
    """What decides the results, as JSON knows it.

    Args:
        detector: Network.
        recordings: How they are read and prepared.
    """
    read = asdict(recordings.read)
    # A path may hold a name.
    read["seizures"] = table_digest(recordings.read.seizures)
    return {
        "weights_sha256": detector.digest,
        "windows": asdict(detector.preprocessor.windows),
        "prepare": asdict(recordings.prepare),
        "read": read,
    }


def table_digest(path: Path | None) -> str | None:
    """What a file or the files of a folder hold, shortened; None for no path."""
    if path is None:
        return None
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:SHORT_DIGEST]
