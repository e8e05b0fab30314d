"""A synthetic click log in raw form, with planted effects and a pair that no sum can express."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml

from manyhead.autoint.fields import Field, Schema
from manyhead_core.app import App
from manyhead_core.cli import console
from manyhead_core.errors import ConfigError, DataError
from manyhead_core.evaluate.binary import roc_auc

FORMAT = 1
PAIR = ("site", "creative")
PAIR_VALUES = 8
INTERACTION = 0.95  # logit; with the main effects below: LR 0.64, attainable 0.78
INTERESTS = ("sports", "music", "travel", "cooking", "cars", "games", "books", "news")
DAYS = 14
MAIN = {
    "age_group": {"18-24": 0.5, "25-34": 0.25, "35-49": 0.0, "50-64": -0.3, "65+": -0.6},
    "device": {"phone": 0.4, "tablet": -0.1, "desktop": -0.4},
}
INTEREST_EFFECT = {"sports": 0.7, "games": -0.6}
PRICE_EFFECT = -0.45
BASE = -1.1


@dataclass(frozen=True)
class ClickLog:
    """Simulated rows and what was planted.

    Args:
        rows: Raw table with the label `click`.
        probability: True click probability of every row.
        schema: Meaning of the columns.
        truth: Planted fields and pair, and the best AUC that any model can reach.
    """

    rows: pd.DataFrame
    probability: np.ndarray
    schema: Schema
    truth: dict[str, Any]


def simulate(
    app: App,  # noqa: ARG001  the command line gives it to every command
    out: Path,
    /,
    rows: int = 20000,
    noise_fields: int = 3,
    missing: float = 0.05,
    table: Literal["csv", "csv.gz", "parquet"] = "csv",
    seed: int = 0,
) -> None:
    """Write a click log with planted effects: a table, schema.yaml and truth.json.

    Args:
        app: Row of the app.
        out: New folder.
        rows: Number of rows.
        noise_fields: Categories without any effect.
        missing: Share of missing values in device and price.
        table: Kind of table.
        seed: Seed; the same seed writes the same bytes.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; name a new folder")
    log = click_log(rows, noise_fields, missing, seed)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(log, partial, table)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    console.say(f"best AUC that any model can reach here: {log.truth['bayes_auc']:.4f}")
    console.result(f"{rows} rows, {log.rows['click'].mean():.1%} clicks: {out / f'clicks.{table}'}")


def click_log(
    rows: int = 20000, noise_fields: int = 3, missing: float = 0.05, seed: int = 0
) -> ClickLog:
    """Simulate a click log in memory.

    Args:
        rows: Number of rows.
        noise_fields: Categories without any effect.
        missing: Share of missing values in device and price.
        seed: Seed.

    Raises:
        ConfigError: An option is out of range.
    """
    _check(rows, noise_fields, missing)
    rng = np.random.default_rng(seed)
    frame = _fields(rng, rows, noise_fields, missing)
    signs = {name: _signs(rng) for name in PAIR}
    probability = 1 / (1 + np.exp(-_logit(frame, signs)))
    label = (rng.random(rows) < probability).astype(np.int64)
    frame.insert(0, "click", label)
    truth = _truth(frame, probability, signs, seed)
    return ClickLog(frame, probability, _schema(noise_fields), truth)


def write(log: ClickLog, folder: Path, table: str = "csv") -> None:
    """Write the files of a click log into a folder."""
    path = folder / f"clicks.{table}"
    if table == "parquet":
        lists = log.rows["interests"].str.split("|").where(log.rows["interests"] != "")
        log.rows.assign(interests=lists).to_parquet(path, index=False)
    else:
        # Without this the time of writing would enter the bytes of a .gz.
        how = {"method": "gzip", "mtime": 0} if table == "csv.gz" else None
        log.rows.to_csv(path, index=False, compression=how)
    text = yaml.safe_dump(log.schema.to_dict(), sort_keys=False)
    (folder / "schema.yaml").write_text(text, encoding="utf-8")
    (folder / "truth.json").write_text(json.dumps(log.truth, indent=1) + "\n", encoding="utf-8")


def _fields(rng: np.random.Generator, rows: int, noise_fields: int, missing: float) -> pd.DataFrame:
    """Columns of the log without the label, in the order of time."""
    users = max(rows // 25, 2)
    ages = rng.choice(list(MAIN["age_group"]), users)
    tastes = np.array([_interests(rng) for _ in range(users)], dtype=object)
    # A few users see most of the ads, as they do.
    user = np.minimum((users * rng.random(rows) ** 2).astype(np.int64), users - 1)
    minutes = np.sort(rng.integers(0, DAYS * 24 * 60, rows))
    time = pd.Timestamp("2024-03-01") + pd.to_timedelta(minutes, unit="min")
    price = np.round(np.exp(rng.normal(2.0, 0.8, rows)), 2)
    columns: dict[str, Any] = {
        "user": [f"u{number:05d}" for number in user],
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "hour": time.hour,
        "age_group": ages[user],
        "device": _gaps(rng, rng.choice(list(MAIN["device"]), rows).astype(object), missing),
        PAIR[0]: _names(rng, PAIR[0], PAIR_VALUES, rows),
        PAIR[1]: _names(rng, PAIR[1], PAIR_VALUES, rows),
        "price": _gaps(rng, price, missing),
    }
    for number in range(noise_fields):
        name = f"noise_{number + 1}"
        columns[name] = _names(rng, name, 6 * (number + 1), rows)
    columns["interests"] = tastes[user]
    return pd.DataFrame(columns)


def _logit(frame: pd.DataFrame, signs: dict[str, dict[str, int]]) -> np.ndarray:
    logit = np.full(len(frame), BASE)
    for name, effects in MAIN.items():
        logit += frame[name].map(effects).fillna(0.0).to_numpy(np.float64)
    logit += PRICE_EFFECT * ((np.log(frame["price"]) - 2.0) / 0.8).fillna(0.0).to_numpy()
    for interest, effect in INTEREST_EFFECT.items():
        logit += effect * frame["interests"].str.contains(interest).to_numpy(np.float64)
    first, second = (frame[name].map(signs[name]).to_numpy(np.float64) for name in PAIR)
    return np.asarray(logit + INTERACTION * first * second)


def _truth(
    frame: pd.DataFrame, probability: np.ndarray, signs: dict[str, dict[str, int]], seed: int
) -> dict[str, Any]:
    label = frame["click"].to_numpy()
    return {
        "format": FORMAT,
        "seed": seed,
        "rows": len(frame),
        "click_rate": float(label.mean()),
        "bayes_auc": roc_auc(label, probability) if 0 < label.mean() < 1 else None,
        "pair": list(PAIR),
        "pair_effect": {"logit": INTERACTION, "signs": signs},
        "main_effects": {
            **MAIN,
            "interests": INTEREST_EFFECT,
            "price": {"per standard deviation of ln(price)": PRICE_EFFECT},
        },
        "planted": [*PAIR, "age_group", "device", "price", "interests"],
        "noise": ["hour", *(name for name in frame if str(name).startswith("noise_"))],
    }


def _schema(noise_fields: int) -> Schema:
    noise = [Field(f"noise_{number + 1}", "category") for number in range(noise_fields)]
    fields = (
        Field("hour", "category"),
        Field("age_group", "category"),
        Field("device", "category"),
        *(Field(name, "category") for name in PAIR),
        Field("price", "number", transform="log1p"),
        *noise,
        Field("interests", "list"),
    )
    return Schema("click", fields, group="user", time="time", segments=("age_group", "device"))


def _signs(rng: np.random.Generator) -> dict[str, int]:
    """+1 or -1 per value, as many of each: seen alone, the field says nothing."""
    signs = rng.permutation([1, -1] * (PAIR_VALUES // 2))
    return {chr(ord("a") + place): int(sign) for place, sign in enumerate(signs)}


def _names(rng: np.random.Generator, name: str, values: int, rows: int) -> np.ndarray:
    if name in PAIR:
        letters = np.array([chr(ord("a") + place) for place in range(values)], dtype=object)
        return letters[rng.integers(0, values, rows)]
    texts = np.array([f"{name[-1]}-{place}" for place in range(values)], dtype=object)
    return texts[rng.integers(0, values, rows)]


def _interests(rng: np.random.Generator) -> str:
    count = rng.integers(0, 5)
    return "|".join(rng.choice(INTERESTS, count, replace=False))


def _gaps(rng: np.random.Generator, values: np.ndarray, share: float) -> np.ndarray:
    gap: Any = None if values.dtype == object else np.nan
    return np.where(rng.random(len(values)) < share, gap, values)


def _check(rows: int, noise_fields: int, missing: float) -> None:
    if rows < 100:
        raise ConfigError(f"--rows: is {rows}; the planted effects need 100 or more")
    if not 0 <= noise_fields <= 9:
        raise ConfigError(f"--noise_fields: is {noise_fields}; choose 0 to 9")
    if not 0 <= missing < 1:
        raise ConfigError(f"--missing: is {missing}; choose a share from 0 to below 1")
