"""Classify slides with saved weights: probabilities in one table, on request the attention maps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from manyhead.acmil.bag_output import MILOutput, attention_weights, one_bag
from manyhead.acmil.batch import Outcome, timed, write_report
from manyhead.acmil.labels import CASE, SLIDE, one_line
from manyhead.acmil.layouts import FeatureFile, open_features, slides_in
from manyhead.acmil.model import ACMILConfig
from manyhead.acmil.preprocessor import BagPreprocessor
from manyhead.acmil.scores import score_columns
from manyhead.acmil.sources import read_bag
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError, UserError, WeightsError
from manyhead_core.evaluate.calibration import Temperature
from manyhead_core.evaluate.files import replace
from manyhead_core.hub.loading import load_weights
from manyhead_core.hub.network import weights_digest
from manyhead_core.training.results import RESEARCH_ONLY, hashed

LISTS = (".csv", ".txt")
ATTENTION_FORMAT = 1
Places = list[tuple[str, Path]]


@dataclass
class BagScorer:
    """A network with the preprocessor it was trained with.

    Args:
        net: Any network of this app, in evaluation mode.
        preprocessor: Names of the classes and scales.
        calibration: What `calibrate` has fitted, or None.
        digest: Changes with the weights and the calibration.
    """

    net: Any
    preprocessor: BagPreprocessor
    calibration: Temperature | None = None
    digest: str = ""

    @classmethod
    def load(cls, app: App, weights: str | Path) -> BagScorer:
        """Take weights folder, checkpoint or run folder; see `load_weights`.

        Raises:
            WeightsError: There are none, or none that know their classes.
        """
        loaded = load_weights(app, weights)
        meta, tensors = loaded.need_preprocessor()
        if "class_names" not in meta:
            raise WeightsError(f"weights: the preprocessor of {loaded.source} is of another task")
        fitted = meta.get("calibration")
        calibration = None if fitted is None else Temperature(**fitted)
        digest = weights_digest(loaded.net, repr(fitted).encode())
        preprocessor = BagPreprocessor.from_state(meta, tensors)
        return cls(loaded.net, preprocessor, calibration, digest[:12])

    @property
    def config(self) -> ACMILConfig:
        """Sizes and target of the network."""
        config: ACMILConfig = self.net.config
        return config

    @torch.inference_mode()
    def output(self, files: Sequence[FeatureFile]) -> MILOutput:
        """What the network gives for one bag.

        Args:
            files: Features of the slides of the bag.

        Raises:
            DataError: They are damaged, not finite, empty or of another encoder.
        """
        if not sum(file.num_patches for file in files):
            raise DataError(f"{files[0].slide_id}: has no patches")
        for file in files:
            self.preprocessor.check_width(file.feature_dim, file.slide_id)
        features = self.preprocessor.features(read_bag(files), files[0].slide_id)
        found: MILOutput = self.net(features, one_bag(features))
        return found

    def columns(self, logits: torch.Tensor) -> dict[str, Any]:
        """Columns of the table of predictions for the logits of one bag, `(1, outputs)`."""
        names, target = self.preprocessor.class_names, self.config.target
        scores = score_columns(logits, self.config, names)
        if target == "regression":
            return {"score": float(self.preprocessor.number(scores["score"])[0])}
        found = {name: float(value[0]) for name, value in scores.items()}
        if target == "survival":
            return found
        chance = np.array(list(found.values()))
        if self.calibration is not None:
            calibrated = rescaled(chance, self.calibration)
            found |= {
                f"calibrated_{name}": float(p) for name, p in zip(names, calibrated, strict=True)
            }
        return {"prediction": names[int(chance.argmax())]} | found


def rescaled(chance: np.ndarray, fitted: Temperature) -> np.ndarray:
    """Calibrated probabilities of the classes, `(classes,)`.

    Args:
        chance: Probabilities, `(classes,)`.
        fitted: Temperature; its bias belongs to the second of two classes.
    """
    logits = np.log(np.clip(chance, 1e-15, 1.0)) / fitted.temperature
    if len(logits) == 2:
        logits[1] += fitted.bias
    found: np.ndarray = softmax(logits)
    return found


def predict(
    app: App,
    weights: str,
    input: Path,
    out: Path,
    attention: Path | None = None,
    features: Path | None = None,
    strict: bool = False,
) -> int:
    """Write the class probabilities of slides; labels are not needed.

    A slide that cannot be used is listed in FILE.report.csv and the rest goes on. A second start
    with the same weights continues one that was cut. Weights that `calibrate` has seen give
    columns calibrated_CLASS beside score_CLASS. Weights that were trained on patients take the
    list of slides with the column case_id and give one row a patient, its id hashed.

    Args:
        app: The app.
        weights: Weights folder, run folder, checkpoint file or hub id.
        input: Feature file, folder of feature files, or list of slides: a .txt with one slide a
            line, or a .csv with the column slide_id and optionally path and case_id.
        out: File ending in .csv.
        attention: Folder for the attention of each slide, SLIDE.h5.
        features: Folder or file that holds the slides of a list; default: beside the list.
        strict: Fail when one of the slides did.
    """
    if out.suffix != ".csv":
        raise ConfigError(f"out: {out} must end in .csv")
    if out.exists():
        raise UserError(f"out: {out} exists; choose another name")
    scorer = BagScorer.load(app, weights)
    bags = find_bags(input, features, by_patient=scorer.preprocessor.bag == "patient")
    outcomes = score_all(scorer, bags, out, attention)
    failed = sum(outcome.status == "failed" for outcome in outcomes.values())
    report = out.with_suffix(".report.csv")
    if failed == len(outcomes):
        first = next(iter(outcomes.values())).error
        raise DataError(f"input: none of {len(outcomes)} could be used, see {report}; {first}")
    console.result(f"written: {out} ({len(outcomes) - failed} of {len(outcomes)}; see {report})")
    console.result(RESEARCH_ONLY)
    return 2 if strict and failed else 0


def find_bags(source: Path, root: Path | None, *, by_patient: bool = False) -> dict[str, Places]:
    """Slides and files of each bag.

    Args:
        source: Feature file, folder, or list.
        root: Folder or file that holds the slides of a list; None is that of the list.
        by_patient: Whether a bag holds all slides of a patient, which needs a list.

    Raises:
        DataError: There is nothing, or the list cannot be read.
    """
    if source.suffix.lower() in LISTS:
        table = _read_list(source)
        places = _places(table, source, root)
    elif not source.exists():
        raise DataError(f"input: {source} does not exist; pass features or a list of slides")
    else:
        table = pd.DataFrame()
        places = slides_in(source)
    if not by_patient:
        return {name: [(name, path)] for name, path in places.items()}
    if CASE not in table:
        raise DataError(
            f"input: the network was trained on patients; pass a .csv with {SLIDE} and {CASE}"
        )
    bags: dict[str, Places] = {}
    for (name, path), case in zip(places.items(), table[CASE], strict=True):
        bags.setdefault(hashed(case), []).append((name, path))
    return bags


def _read_list(source: Path) -> pd.DataFrame:
    if not source.is_file():
        raise DataError(f"input: no file {source}")
    try:
        if source.suffix.lower() == ".txt":
            lines = source.read_text(encoding="utf-8-sig").splitlines()
            table = pd.DataFrame({SLIDE: [line.strip() for line in lines if line.strip()]})
        else:
            table = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as err:
        raise DataError(f"input: {source.name} cannot be read ({one_line(err)})") from err
    if SLIDE not in table:
        raise DataError(
            f"input: {source.name} has no column {SLIDE}; it has "
            f"{', '.join(map(str, table.columns[:6]))}"
        )
    if table.empty:
        raise DataError(f"input: {source.name} names no slide")
    odd = table[SLIDE].str.contains(r"[/\\]|^\.|^$", regex=True)
    if odd.any():
        raise DataError(f"input: {table[SLIDE][odd].iloc[0]!r} in {source.name} is no slide id")
    twice = table[SLIDE].duplicated()
    if twice.any():
        raise DataError(f"input: slide {table[SLIDE][twice].iloc[0]} is twice in {source.name}")
    return table


def _places(table: pd.DataFrame, source: Path, root: Path | None) -> dict[str, Path]:
    folder = root or source.parent
    if "path" in table:
        return {name: folder / path for name, path in zip(table[SLIDE], table["path"], strict=True)}
    where = slides_in(folder)
    # A slide without features is a failure of its own, not of the list.
    return {name: where.get(name, folder / f"{name}.h5") for name in table[SLIDE]}


def score_all(
    scorer: BagScorer, bags: Mapping[str, Places], out: Path, attention: Path | None = None
) -> dict[str, Outcome]:
    """Score bags one by one and write the table when all are done.

    Args:
        scorer: Network and preprocessor.
        bags: Slides and files of each bag.
        out: Table; the file beside it, FILE.report.csv, lists every bag.
        attention: Folder for the attention maps, or None.

    Returns:
        What has become of each bag.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = _Journal(out, scorer, bags)
    outcomes = {}
    if journal.rows:
        console.say(f"{len(journal.rows)} of {len(bags)} are done already")
    for name, places in console.progress(list(bags.items()), "scoring slides"):
        before = journal.rows.get(name)
        kept = attention is None or all(
            _map_file(attention, slide).is_file() for slide, _ in places
        )
        if before is not None and kept:
            outcomes[name] = Outcome("done before", int(before["patches"]))
            continue
        outcomes[name] = timed(_Work(scorer, name, journal, attention), places)
        if outcomes[name].error:
            console.error(f"{name}: {outcomes[name].error.removeprefix(f'{name}: ')}")
    write_report(out.with_suffix(".report.csv"), outcomes)
    if journal.rows:
        journal.finish(list(bags))
    return outcomes


@dataclass(frozen=True)
class _Work:
    scorer: BagScorer
    name: str
    journal: _Journal
    attention: Path | None

    def __call__(self, places: Places) -> Outcome:
        files = [open_features(path, slide) for slide, path in places]
        output = self.scorer.output(files)
        if self.attention is not None:
            write_attention(self.attention, files, output, self.scorer)
        patches = sum(file.num_patches for file in files)
        columns = self.scorer.columns(output.logits)
        self.journal.add({"id": self.name, "patches": patches} | columns)
        return Outcome("ok", patches)


class _Journal:
    """Rows that are on disk as soon as they are known, under the name of a file to come.

    The name holds the weights and the input, so that only the same start is continued.
    """

    def __init__(self, out: Path, scorer: BagScorer, bags: Mapping[str, Places]) -> None:
        key = hashlib.sha256(f"{scorer.digest} {sorted(map(str, bags.values()))}".encode())
        self.out, self.path = out, out.with_name(f".{out.name}.{key.hexdigest()[:8]}.partial")
        self.rows: dict[str, dict[str, str]] = {}
        if self.path.is_file():
            table = pd.read_csv(self.path, dtype=str, keep_default_na=False, on_bad_lines="skip")
            # The last line of a killed process may be cut anywhere.
            whole = self.path.read_text(encoding="utf-8").endswith("\n")
            table = table if whole else table[:-1]
            self.rows = {str(row["id"]): row for row in table.to_dict("records")}  # type: ignore[misc]
            self._write()

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one more row."""
        text = {name: repr(v) if isinstance(v, float) else str(v) for name, v in row.items()}
        self.rows[text["id"]] = text
        frame = pd.DataFrame([text])
        frame.to_csv(self.path, mode="a", index=False, header=not self.path.is_file())

    def _write(self) -> None:
        replace(
            self.path,
            lambda path: pd.DataFrame(list(self.rows.values())).to_csv(path, index=False),
        )

    def finish(self, order: Sequence[str]) -> None:
        """Give the file its name, with the rows in order."""
        table = pd.DataFrame([self.rows[name] for name in order if name in self.rows])
        replace(self.out, lambda path: table.to_csv(path, index=False))
        self.path.unlink(missing_ok=True)


def write_attention(
    folder: Path, files: Sequence[FeatureFile], output: MILOutput, scorer: BagScorer
) -> None:
    """Write the attention of the slides of one bag, a file for each.

    Datasets: `attention` float32 `(patches, branches)`, weights that sum to one over the bag, the
    mean of the heads; `coords` int64 `(patches, 2)` where the features have them.

    Args:
        folder: Where to.
        files: Features of the slides.
        output: What the network gave for them together.
        scorer: Network, for the attributes.
    """
    if output.attention is None:
        raise UserError("attention: this network has no attention; use another, or leave it out")
    total = len(output.attention)
    bounds = torch.tensor([0, total], device=output.attention.device)
    weights = attention_weights(output.attention, cu_seqlens=bounds).mean(-1).float().numpy()
    start = 0
    for file in files:
        own = weights[start : start + file.num_patches]
        start += file.num_patches
        replace(_map_file(folder, file.slide_id), _MapWriter(file, own, scorer))


@dataclass(frozen=True)
class _MapWriter:
    file: FeatureFile
    weights: np.ndarray
    scorer: BagScorer

    def __call__(self, path: Path) -> None:
        with h5py.File(path, "w") as target:
            target["attention"] = self.weights
            coords = None
            with suppress(DataError):  # in µm, and nobody knows the size of a pixel
                coords = self.file.coords()
            if coords is not None:
                target["coords"] = coords
            about = {"format": ATTENTION_FORMAT, "slide_id": self.file.slide_id}
            about |= {"weights": self.scorer.digest}
            if self.file.patch_size_level0 is not None:
                about["patch_size_level0"] = self.file.patch_size_level0
            if self.scorer.calibration is not None:
                about |= {f"calibration_{k}": v for k, v in asdict(self.scorer.calibration).items()}
            target.attrs.update(about)


def _map_file(folder: Path, slide: str) -> Path:
    return folder / f"{slide}.h5"
