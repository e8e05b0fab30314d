"""`python -m benchmarks [CASE ...]`: measure, print one table per case, keep the numbers."""

from __future__ import annotations

import argparse
import pkgutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.cases import CASES, Case
from benchmarks.harness import Setting
from manyhead_core.app import find
from manyhead_core.cli import console
from manyhead_core.cli.main import guarded
from manyhead_core.errors import UserError

PROGRAM = "python -m benchmarks"
RESULTS = Path("benchmarks/results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: Arguments after the program name; None takes those of the process.

    Returns:
        0 done, whether targets were met or not; 1 a case crashed; 2 mistake of the user.
    """
    return guarded(PROGRAM, None, lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Measure speed and memory.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases to run; all when none")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder (default: {RESULTS})")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.list:
        for case in CASES:
            console.result(f"{case.name:<18} {case.summary} ({', '.join(case.devices)})")
        return 0
    setting = _setting(options)
    chosen = _chosen(options.cases, setting.device.type)
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        crashed = [case.name for case in chosen if not _measure(case, setting, options.out)]
    finally:
        torch.set_num_threads(before)
    if crashed:
        console.error(f"{PROGRAM}: crashed: {', '.join(crashed)}")
    return 1 if crashed else 0


def _setting(options: argparse.Namespace) -> Setting:
    device = find(options.device, ("cpu", "cuda"), "device")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda is not available to this PyTorch; use --device cpu")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads: {options.threads} is not positive; pass 1 or more")
    return Setting(torch.device(device), options.threads or torch.get_num_threads(), options.quick)


def _chosen(names: Sequence[str], device: str) -> list[Case]:
    known = {case.name: case for case in CASES}
    if not names:
        return [case for case in CASES if device in case.devices]
    chosen = [known[find(name, known, "case")] for name in names]
    for case in chosen:
        if device not in case.devices:
            raise UserError(f"--device: {case.name} runs on {', '.join(case.devices)} only")
    return chosen


def _measure(case: Case, setting: Setting, folder: Path) -> bool:
    """Run one case; a crash is reported and keeps the results of an earlier run."""
    console.say(f"{case.name}: {case.summary}")
    started = time.perf_counter()
    torch.manual_seed(0)
    about = report.metadata(setting)
    try:
        outcome = pkgutil.resolve_name(case.function)(setting)
    except Exception:
        console.say(traceback.format_exc())
        return False
    report.show(case.name, outcome)
    path = report.write(folder, case.name, outcome, setting, about)
    console.say(f"{case.name}: {time.perf_counter() - started:.0f} s, written to {path}")
    return True


if __name__ == "__main__":
    sys.exit(main())
