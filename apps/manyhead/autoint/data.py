"""Tables of clicks for training: read, split, encoded once, and served in batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule

from manyhead.autoint import cache as caches
from manyhead.autoint.cache import PARTS, AnyEncoder, Cache, built_once, fingerprint
from manyhead.autoint.encoder import EncoderOptions
from manyhead.autoint.encoding import encode, fit_encoder
from manyhead.autoint.feature_map import part_files, read_map
from manyhead.autoint.fields import Schema
from manyhead.autoint.loader import WINDOW_ROWS, RowLoader
from manyhead.autoint.sources import Source, open_source
from manyhead.autoint.splitting import SplitOptions, Strategy, assign
from manyhead.autoint.store import Store
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.training.random_state import run_seed

Format = Literal["movielens-1m", "movielens-100k", "criteo", "avazu", "kdd12", "table", "encoded"]
SPLITS: dict[str, Strategy] = {
    "random": "row",
    "group": "group",
    "time": "time",
    "fold": "fold",
    "reference": "reference",
}
# A split file of more rows than this would be larger than what it helps to reproduce.
SPLIT_FILE_ROWS = 5_000_000
# Share of a GPU's free memory that the rows may take; the rest is the model's.
RESIDENT_SHARE = 0.5


class TableData(LightningDataModule):
    """Rows of a table, encoded once and kept in a cache beside the runs.

    The dictionary is fitted on training rows only, unless `mode` is `reference`.

    Args:
        root: Folder or file with the data.
        format: Which data set it is; `table` is any CSV or Parquet with a schema, `encoded` is
            Parquet of ids with a feature_map.json.
        schema: YAML file that says what the columns are; needed for `table`.
        mode: `reference` repeats the published preprocessing, which counts test rows too.
        split: `random`; `group`: all rows of a group together; `time`: the latest rows test;
            `fold`: stratified folds; `reference`: of the published results; or a CSV file with
            the columns row and split. `auto` takes `reference` in reference mode, the files of
            encoded data, and `random` elsewhere.
        batch_size: Training rows of a batch of one process.
        eval_batch_size: Rows of a batch in evaluation.
        min_count: Values seen less often in training share the unknown id of their field.
        max_slots: Longest list kept of a field that sets no bound itself.
        hash_buckets: Hash categories into so many ids per field instead of keeping a dictionary;
            0 keeps one.
        window_rows: Rows that are shuffled together when the data do not fit into one window.
        cache: Folder for encoded data; never the raw one.
        device: Where training rows lie: `cuda` on the GPU, `cpu` in the file and in windows,
            `auto` on the GPU if they take at most half of its free memory.
        seed: Seed of the order of training rows; None takes that of the run.
        split_seed: Seed of the splits by chance.
        fractions: Share of train, validation and test, where they can be chosen.
        folds: Number of folds of `split: fold`.
        fold: Fold that tests, from 0; the next one validates.

    Raises:
        ConfigError: Options that contradict each other.
        DataError: Data that are missing or not what was expected.
    """

    def __init__(
        self,
        root: Path,
        format: Format = "table",
        schema: Path | None = None,
        mode: Literal["default", "reference"] = "default",
        split: str = "auto",
        batch_size: int = 1024,
        eval_batch_size: int = 8192,
        min_count: int = 2,
        max_slots: int = 50,
        hash_buckets: int = 0,
        window_rows: int = WINDOW_ROWS,
        cache: Path = Path("runs/cache"),
        device: Literal["auto", "cpu", "cuda"] = "auto",
        seed: int | None = None,
        split_seed: int = 0,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        folds: int = 10,
        fold: int = 0,
    ) -> None:
        super().__init__()
        if format not in get_args(Format):
            known = ", ".join(get_args(Format))
            raise ConfigError(f"data.format: {format!r} is not known; choose one of {known}")
        for name, number in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if number < 1:
                raise ConfigError(f"data.{name}: must be at least 1, got {number}")
        if mode == "reference" and hash_buckets:
            raise ConfigError("data.hash_buckets: the reference hashes nothing; use mode default")
        self.root, self.format, self.mode = Path(root), format, mode
        self.schema_file = schema
        self.split = _split_options(split, mode, fractions, split_seed, folds, fold)
        self.splits_itself = split == "auto" and format == "encoded"
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.options = EncoderOptions(min_count=min_count, max_slots=max_slots)
        self.hash_buckets, self.window_rows = hash_buckets, window_rows
        self.cache_folder, self.device, self.seed = Path(cache), device, seed
        self.cache: Cache | None = None
        self.preprocessor: AnyEncoder | None = None

    def prepare(self) -> None:
        """Encode the data, unless the cache has them; further calls do nothing."""
        if self.cache is not None:
            return
        if not self.root.exists():
            raise DataError(f"data.root: {self.root} does not exist; pass the folder of the data")
        prepare = self._prepare_encoded if self.format == "encoded" else self._prepare_raw
        self.cache = prepare()
        self.preprocessor = self.cache.preprocessor()

    def net_overrides(self) -> dict[str, int]:
        """Sizes of the network that follow from the data."""
        encoder = self._prepared().preprocessor()
        rows = getattr(encoder, "num_embeddings", encoder.num_features)
        return {"num_features": rows, "num_fields": encoder.num_fields}

    def setup(self, stage: str) -> None:
        """Make sure that the data are there and the parts of this stage are not empty."""
        cache = self._prepared()
        needed = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}
        for part in needed.get(stage, ()):
            if not cache.rows(part):
                raise DataError(
                    f"data.split: the {part} part is empty; choose another split or add its file"
                )

    def train_dataloader(self) -> RowLoader:
        """Training rows in an order drawn anew for each epoch."""
        # Overfitting on a few batches means the same ones in each epoch.
        same = self.trainer is not None and bool(getattr(self.trainer, "overfit_batches", 0))
        return self._loader("train", shuffle=not same)

    def val_dataloader(self) -> RowLoader:
        """Validation rows in file order."""
        return self._loader("validation")

    def test_dataloader(self) -> RowLoader:
        """Test rows in file order."""
        return self._loader("test")

    def segments(self, part: str = "test") -> pd.DataFrame:
        """Segment columns of the schema for the rows of a part, by row number."""
        return self._prepared().segments(part)

    def write_split(self, folder: Path) -> None:
        """Write `split.csv` with row and split; of large data the recipe, `split.json`."""
        cache = self._prepared()
        total = sum(cache.rows(part) for part in PARTS)
        if total > SPLIT_FILE_ROWS:
            path, text = Path(folder) / "split.json", self._split_recipe()
        else:
            path, text = Path(folder) / "split.csv", _split_table(cache)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    def _split_recipe(self) -> str:
        rows = {part: self._prepared().rows(part) for part in PARTS}
        split = None if self.format == "encoded" else dataclasses.asdict(self.split)
        content = {"root": self.root, "format": self.format, "mode": self.mode, "split": split}
        return json.dumps(content | {"rows": rows}, indent=1, default=str)

    def _prepared(self) -> Cache:
        self.prepare()
        assert self.cache is not None  # noqa: S101
        return self.cache

    def _prepare_encoded(self) -> Cache:
        if not self.splits_itself or self.mode == "reference":
            raise ConfigError(
                "data.split, data.mode: encoded data bring their own split and encoding; "
                "leave both at their defaults"
            )
        fields, files = read_map(self.root), part_files(self.root)
        if not files["train"]:
            raise DataError(
                f"data.root: {self.root} holds no train.parquet, train_*.parquet or folder train"
            )
        named = [(part, *_identity(file)) for part, found in files.items() for file in found]
        recipe = {"format": self.format, "files": named, "map": fields.to_map()}
        return built_once(
            self._place(),
            fingerprint(recipe),
            lambda folder: caches.copy_rows(folder, files, fields),
        )

    def _prepare_raw(self) -> Cache:
        source = self._source()
        recipe = {
            "source": source.fingerprint,
            "schema": source.schema.to_dict(),
            "mode": self.mode,
            "split": self._split_identity(),
            "options": dataclasses.asdict(self.options),
        }
        return built_once(
            self._place(), fingerprint(recipe), lambda folder: self._encode(source, folder)
        )

    def _place(self) -> Path:
        place, root = (self.cache_folder / "autoint").resolve(), self.root.resolve()
        if root.is_dir() and place.is_relative_to(root):
            raise ConfigError(
                f"data.cache: {self.cache_folder} lies in the folder of the raw data; "
                "pass another folder"
            )
        return self.cache_folder / "autoint"

    def _source(self) -> Source:
        schema = Schema.load(self.schema_file) if self.schema_file else None
        source = open_source(self.format, self.root, schema, self.mode)
        if not self.hash_buckets:
            return source
        hashed = with_buckets(source.schema, self.hash_buckets)
        return open_source(self.format, self.root, hashed, self.mode)

    def _encode(self, source: Source, folder: Path) -> None:
        console.say(f"encoding {self.root}, once")
        parts = assign(source, self.split)
        encoder = fit_encoder(source, parts, self.mode, self.options)
        rows = encode(source, encoder, self.mode)
        caches.encode_rows(folder, rows, encoder, source.schema, parts)

    def _split_identity(self) -> list[Any]:
        file = self.split.file
        return [dataclasses.asdict(self.split), _identity(file) if file else None]

    def _loader(self, part: str, shuffle: bool = False) -> RowLoader:
        store = self._prepared().store(part)
        trainer = self.trainer
        gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return RowLoader(
            store,
            self.batch_size if part == "train" else self.eval_batch_size,
            shuffle=shuffle,
            seed=run_seed() if self.seed is None else self.seed,
            window_rows=self.window_rows,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=self._resident(store) if part == "train" else None,
            pin_memory=gpu,
        )

    def _resident(self, store: Store) -> torch.device | None:
        """The GPU that holds the rows, or None."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type != "cuda":
            if self.device == "cuda":
                raise ConfigError("data.device: is cuda, but the run is on the CPU; use auto")
            return None
        if self.device == "auto":
            free, _ = torch.cuda.mem_get_info(device)
            fits = len(store) * store.layout.row_bytes() <= RESIDENT_SHARE * free
            return device if fits else None
        return device if self.device == "cuda" else None


def _split_options(
    split: str,
    mode: str,
    fractions: tuple[float, float, float],
    seed: int,
    folds: int,
    fold: int,
) -> SplitOptions:
    if split == "auto":
        split = "reference" if mode == "reference" else "random"
    by = SPLITS.get(split, "file")
    file = Path(split) if by == "file" else None
    if file is not None and not file.is_file():
        known = ", ".join(["auto", *SPLITS])
        raise ConfigError(f"data.split: {split!r} is no file and none of {known}")
    return SplitOptions(by, fractions, seed, folds, fold, file)


def with_buckets(schema: Schema, buckets: int) -> Schema:
    """The schema with hashed categories and lists, where a field does not say otherwise."""
    fields = tuple(
        dataclasses.replace(field, num_buckets=buckets)
        if field.kind != "number" and not field.shares and not field.num_buckets
        else field
        for field in schema.fields
    )
    return dataclasses.replace(schema, fields=fields)


def _identity(file: Path) -> tuple[str, int, int]:
    """What tells a changed file from an unchanged one without reading it."""
    about = file.stat()
    return str(file.resolve()), about.st_size, about.st_mtime_ns


def _split_table(cache: Cache) -> str:
    rows, names = [], []
    for part in PARTS:
        found = [block.row.numpy() for block in cache.store(part).blocks()]
        rows += found
        names += [np.full(sum(map(len, found)), part, dtype=object)]
    table = pd.DataFrame({"row": np.concatenate(rows), "split": np.concatenate(names)})
    return table.sort_values("row").to_csv(index=False, lineterminator="\n")
