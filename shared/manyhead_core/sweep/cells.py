"""What a sweep consists of: one cell for every variant, seed and fold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from manyhead_core.app import App
from manyhead_core.cli.configs import resolve
from manyhead_core.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Cell:
    """One fit and test.

    Args:
        app: Name of the app.
        variant: Name of the variant.
        seed: Seed of the run.
        fold: Number of the fold, from 0; None without folds.
        configs: Config files, in order.
        options: Options by dotted name, as the user would type them.
    """

    app: str
    variant: str
    seed: int
    fold: int | None
    configs: tuple[Path, ...]
    options: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Variant, seed and fold, as in `wide/seed-0-fold-2`: also the folder of the cell."""
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        return f"{self.variant}/seed-{self.seed}{fold}"

    def folder(self, out: Path) -> Path:
        """Folder that holds the runs of the cell."""
        return out / self.app / self.name

    def arguments(self, out: Path) -> list[str]:
        """Arguments of `manyhead`."""
        words = [self.app, "fit"]
        for path in self.configs:
            words += ["--config", str(path)]
        for name, value in self.options:
            words += [f"--{name}={value}"]
        return [*words, f"--seed_everything={self.seed}", f"--runs={out}", f"--name={self.name}"]

    def identity(self) -> str:
        """Changes with everything that the result depends on, but for the data and the code."""
        parts = [path.read_text(encoding="utf-8") for path in self.configs]
        content = [self.app, self.seed, self.fold, parts, sorted(self.options)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_cells(
    app: App,
    config: str,
    overrides: Sequence[str],
    variants: str,
    seeds: str,
    folds: int,
    fold_options: str,
) -> list[Cell]:
    """All cells of a sweep, variant by variant.

    Args:
        app: Row of the app.
        config: Names or files of configs, separated by commas.
        overrides: `KEY=VALUE` for all cells.
        variants: YAML file or text, see `read_variants`.
        seeds: See `read_seeds`.
        folds: Number of folds; 0 for none.
        fold_options: Options of a fold, with the fields {fold} and {folds}.
    """
    files = tuple(resolve(app, name.strip()) for name in config.split(",") if name.strip())
    common = dict(key_value(text, "override") for text in overrides)
    cells = []
    for variant, changes in read_variants(variants).items():
        for seed in read_seeds(seeds):
            for fold in range(folds) if folds else [None]:
                options = common | changes
                if fold is not None:
                    options |= _fold(fold_options, fold, folds)
                chosen = tuple(options.items())
                cells.append(Cell(app.name, variant, seed, fold, files, chosen))
    return cells


def _fold(options: str, fold: int, folds: int) -> dict[str, str]:
    text = options.replace("{folds}", str(folds)).replace("{fold}", str(fold))
    return dict(key_value(part, "--fold_options:") for part in text.split(",") if part.strip())


def read_seeds(text: str) -> list[int]:
    """Seeds of `0,1,2` or `0-4`, each once.

    Raises:
        ConfigError: The text says something else.
    """
    seeds: list[int] = []
    for part in str(text).strip("[]").split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ConfigError(f"--seeds: {text!r} is no list of seeds; write 0,1,2 or 0-4")
        first = int(match[1])
        seeds += range(first, int(match[2] or first) + 1)
    if not seeds:
        raise ConfigError(f"--seeds: {text!r} holds no seed; write 0,1,2 or 0-4")
    return list(dict.fromkeys(seeds))


def read_variants(text: str) -> dict[str, dict[str, str]]:
    """Options by variant, from a YAML file or from `NAME:KEY=VALUE,...;NAME:...`.

    The first variant is the reference of the differences. Without text there is one, `base`.

    Args:
        text: A path that ends in .yaml with one mapping a variant, or the variants themselves.

    Raises:
        ConfigError: The file is missing, or a variant cannot be read.
    """
    if text.endswith((".yaml", ".yml")):
        found = _variants_file(Path(text))
    else:
        found = dict(_variant(part) for part in text.split(";") if part.strip())
        if len(found) < len([part for part in text.split(";") if part.strip()]):
            raise ConfigError(f"--variants: a name occurs twice in {text!r}")
    for name in found:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"--variants: the name {name!r} must be of letters, digits and . _ + -"
            )
    return found or {"base": {}}


def key_value(text: str, where: str) -> tuple[str, str]:
    """`model.lr` and `0.1` of `model.lr=0.1`; leading dashes are allowed.

    Raises:
        ConfigError: There is no `=`.
    """
    name, equals, value = text.strip().lstrip("-").partition("=")
    if not equals or not name:
        raise ConfigError(f"{where} {text!r}: write KEY=VALUE, as in model.lr=0.001")
    return name, value


def _variant(text: str) -> tuple[str, dict[str, str]]:
    name, _, options = text.strip().partition(":")
    parts = re.split(r",(?![^\[({]*[\])}])", options)  # commas within brackets belong to the value
    pairs = dict(key_value(part, f"--variants: {name}:") for part in parts if part.strip())
    return name.strip(), pairs


def _variants_file(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        raise ConfigError(f"--variants: file {path} does not exist")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise ConfigError(f"--variants: {path} is not YAML") from err
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"--variants: {path} must hold one mapping of options a variant")
    found = {}
    for name, options in content.items():
        if not isinstance(options, Mapping | None):
            raise ConfigError(f"--variants: {path}: {name} must be a mapping of options")
        found[str(name)] = dict(_leaves(options or {}))
    return found


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            found.append((f"{prefix}{name}", text))
    return found
