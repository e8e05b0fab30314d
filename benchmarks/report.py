"""What a case leaves behind: one table on the terminal, one JSON file in the results folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import Outcome, Result, Setting, Target
from manyhead_core.cli import console
from manyhead_core.training.environment import environment, package_version

HEADER = ("measurement", "variant", "median", "IQR", "rate", "ratio", "quartiles", "n", "also")
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
BINARY = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def metadata(setting: Setting) -> dict[str, Any]:
    """Versions, machine and state of it: what is needed to judge or repeat the numbers."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        **environment(),
        "pyarrow": package_version("pyarrow"),
        "device": setting.device.type,
        "device_name": _device_name(setting),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": setting.threads,
        "load_average": load,
        "quick": setting.quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """Model name of the processor, or `unknown`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _device_name(setting: Setting) -> str:
    import torch

    if setting.device.type == "cuda":
        return torch.cuda.get_device_name(setting.device)
    return cpu_model()


def write(
    folder: Path, case: str, outcome: Outcome, setting: Setting, about: dict[str, Any]
) -> Path:
    """Write `<case>-<device>.json`; a quick run goes to a file of its own.

    Args:
        folder: Results folder, made when missing.
        case: Name of the case.
        outcome: What was measured.
        setting: Device and whether the run was quick.
        about: `metadata` as it was when the case started.
    """
    content = {
        "metadata": {"case": case, **about, "notes": outcome.notes},
        "results": [result.to_dict() for result in outcome.results],
        "targets": [target.to_dict() for target in outcome.targets],
    }
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "-quick" if setting.quick else ""
    path = folder / f"{case}-{setting.device.type}{suffix}.json"
    temporary = path.with_name(f"{path.name}.tmp")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    temporary.write_text(f"{text}\n", encoding="utf-8")
    temporary.replace(path)
    return path


def show(case: str, outcome: Outcome) -> None:
    """Print the table of a case, its targets and its notes."""
    console.table(case, HEADER, [_row(result) for result in outcome.results])
    for target in outcome.targets:
        console.result(target_line(target))
    for note in outcome.notes:
        console.result(f"note: {note}")
    console.result("")


def target_line(target: Target) -> str:
    """One line per claim; a miss is printed as loudly as a hit."""
    if target.met is None:
        return f"NOT MEASURED  {target.claim}: target {target.text}; {target.reason}"
    word = "met" if target.met else "MISSED"
    found = f"{target.found:.4g} {target.unit}".rstrip()
    return f"{word:<13} {target.claim}: found {found}, target {target.text}"


def _row(result: Result) -> Sequence[str]:
    cost, ratio = result.cost, result.ratio
    timed = result.unit.startswith("s/")
    share = cost.iqr / cost.median if cost.median else 0.0
    plain = result.variant == result.baseline
    return (
        result.group,
        result.variant,
        scaled(cost.median, "s") if timed else binary(cost.median),
        f"{share:.0%}",
        f"{_count(1 / cost.median)} {result.unit[2:]}/s" if timed else "",
        "1 (baseline)" if plain else f"{ratio.median:.3g}",
        "" if plain else f"{ratio.low:.3g} to {ratio.high:.3g}",
        str(result.repeats),
        ", ".join(_extra(name, value) for name, value in result.extra.items()),
    )


def _extra(name: str, value: float) -> str:
    words = name.replace("_", " ")
    if words.endswith(" bytes"):
        return f"{words.removesuffix(' bytes')} {binary(value)}"
    if words.endswith(" seconds"):
        return f"{words.removesuffix(' seconds')} {scaled(value, 's')}"
    if words.startswith("share "):
        return f"{words.removeprefix('share of ')} {value:.2%}"
    return f"{words} {scaled(value, '')}"


def _count(value: float) -> str:
    return scaled(value, "") if value >= 1 else f"{value:.3g}"


def scaled(value: float, unit: str) -> str:
    """Three digits with a decimal prefix, as `2.31 ms`."""
    for factor, prefix in PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def binary(value: float) -> str:
    """Three digits of a number of bytes, as `1.21 GiB`."""
    factor, unit = next(((f, u) for f, u in BINARY if value >= f), BINARY[-1])
    return f"{value / factor:.3g} {unit}"
