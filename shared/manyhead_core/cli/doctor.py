"""`manyhead doctor`: does this installation work, and what to do where it does not."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from manyhead_core.app import App
from manyhead_core.attention import attend
from manyhead_core.attention.backend import Backend
from manyhead_core.cli import console
from manyhead_core.cli.extras import DISTRIBUTION
from manyhead_core.training.environment import git_commit

State = Literal["ok", "note", "broken"]
BACKENDS: tuple[Backend, ...] = ("eager", "sdpa")
# Collections of other extras, and what only developers need.
NOT_SHOWN = ("all", "dev", "docs")
COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class Entry:
    """One line of the report.

    Args:
        topic: What was looked at.
        state: `broken` when a required part does not work; `note` when something optional is
            missing or worth knowing.
        found: What was found.
        remedy: What to do about it, empty when nothing.
    """

    topic: str
    state: State
    found: str
    remedy: str = ""


def doctor(apps: Mapping[str, App], runs: Path = Path("runs")) -> int:
    """Report versions, devices, attention kernels, missing extras and write access.

    Args:
        apps: The apps of the suite.
        runs: Folder of the runs, tried for write access.

    Returns:
        0, or 2 when a required part is broken.
    """
    entries = [
        *versions(),
        *torchvision(),
        *extras(apps),
        *devices(),
        *attention(),
        compiler(),
        writable(runs),
        hub(),
    ]
    rows = [(entry.topic, entry.state, entry.found, entry.remedy) for entry in entries]
    console.table("manyhead doctor", ("topic", "state", "found", "remedy"), rows)
    broken = [entry.topic for entry in entries if entry.state == "broken"]
    notes = sum(entry.state == "note" for entry in entries)
    verdict = f"broken: {', '.join(broken)}" if broken else "everything required works"
    console.result(f"{verdict}; {notes} note{'s' * (notes != 1)}")
    return 2 if broken else 0


def versions() -> Iterator[Entry]:
    """Python, the suite, and every package that it needs in any case."""
    yield Entry("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")
    suite = installed(DISTRIBUTION)
    if suite is None:
        remedy = "install it: pip install -e . in the checkout, or the wheel"
        yield Entry(DISTRIBUTION, "note", "runs from a folder, is not installed", remedy)
        return
    commit = git_commit()
    yield Entry(DISTRIBUTION, "ok", suite + (f", commit {commit[:10]}" if commit else ""))
    for requirement in requirements(""):
        yield _required(requirement)


def _required(requirement: Requirement) -> Entry:
    found = installed(requirement.name)
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    if found is None:
        return Entry(requirement.name, "broken", "missing", install)
    if not requirement.specifier.contains(found, prereleases=True):
        return Entry(requirement.name, "broken", f"{found}, not {requirement.specifier}", install)
    return Entry(requirement.name, "ok", found)


def torchvision() -> Iterator[Entry]:
    """Whether an installed torchvision fits torch: torchmetrics imports it whenever it is there.

    A build for another torch stops `import pytorch_lightning` with an error about `nms`.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as err:
        line = " ".join(str(err).split())[:80]
        found = f"built for another torch than {torch.__version__}: {line}"
        yield Entry(
            "torchvision", "broken", found, "pip uninstall torchvision (nothing here needs it)"
        )
    else:
        yield Entry("torchvision", "ok", f"{installed('torchvision')}, not needed, does no harm")


def extras(apps: Mapping[str, App]) -> Iterator[Entry]:
    """Every extra: what it lacks, which apps want it, and the command that installs it."""
    users: dict[str, list[str]] = {}
    for app in apps.values():
        users.setdefault(app.extra, []).append(app.name)
    for name in known_extras() | dict.fromkeys(users):
        lacking = [need.name for need in requirements(name) if installed(need.name) is None]
        topic = f"extra {name}" + (f" ({', '.join(users[name])})" if name in users else "")
        if lacking:
            remedy = f"pip install '{DISTRIBUTION}[{name}]'"
            yield Entry(topic, "note", f"missing {', '.join(lacking)}", remedy)
        else:
            yield Entry(topic, "ok", "complete")


def devices() -> Iterator[Entry]:
    """Processor with its threads, and every accelerator that torch sees."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Entry(
        "cpu", "ok", f"{allowed} cores usable, torch uses {torch.get_num_threads()} threads"
    )
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Entry(f"cuda:{number}", "ok", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Entry("mps", "ok", "Apple GPU")
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        found = f"a driver is installed, but torch {torch.__version__} sees no GPU"
        yield Entry("cuda", "note", found, "install the CUDA build of torch (pytorch.org)")


def attention() -> Iterator[Entry]:
    """Run a tiny `attend` with every backend on every device, forward and backward."""
    places = ["cpu"]
    places += ["cuda"] if torch.cuda.is_available() else []
    places += ["mps"] if torch.backends.mps.is_available() else []
    for place in places:
        for backend in BACKENDS:
            yield _tried(f"attend {backend} on {place}", partial(try_attend, backend, place))


def try_attend(backend: Backend, place: str) -> float:
    """Largest difference of a small `attend` from the softmax in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 8, generator=generator)
    moved = [x.to(place, copy=True).requires_grad_() for x in (query, key, value)]
    out = attend(moved[0], moved[1], moved[2], backend=backend).out
    out.sum().backward()
    if not all(x.grad is not None and bool(x.grad.isfinite().all()) for x in moved):
        raise RuntimeError("gradients are not finite")
    scores = query.double() @ key.double().transpose(-2, -1) * 8**-0.5
    expected = scores.softmax(-1) @ value.double()
    return float((out.detach().cpu().double() - expected).abs().max())


def _tried(topic: str, call: Callable[[], float]) -> Entry:
    # TF32 on a GPU leaves about three digits.
    limit = 1e-2
    remedy = "reinstall torch (pytorch.org); report it if that does not help"
    try:
        difference = call()
    except (RuntimeError, NotImplementedError) as err:
        return Entry(topic, "broken", " ".join(str(err).split())[:80], remedy)
    if not difference < limit:
        return Entry(topic, "broken", f"off by {difference:.1e}", remedy)
    return Entry(topic, "ok", f"off by {difference:.0e} from float64")


def compiler() -> Entry:
    """The C++ compiler that torch.compile calls on a CPU."""
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        path = shutil.which(name) if name else None
        if path:
            return Entry("C++ compiler", "ok", f"{path}; --model.compile true works on the CPU")
    remedy = "only for --model.compile true: install g++ or clang++"
    return Entry("C++ compiler", "note", "none", remedy)


def writable(runs: Path) -> Entry:
    """Whether runs can be written; leaves nothing behind."""
    place = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    topic = f"folder {runs}"
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free / 2**30
    except OSError as err:
        return Entry(topic, "note", f"not writable: {err.strerror}", "pass --runs FOLDER to fit")
    state: State = "ok" if free >= 1 else "note"
    return Entry(topic, state, f"writable, {free:.1f} GiB free")


def hub() -> Entry:
    """Whether names of weights may be looked up on the Hugging Face hub."""
    value = os.environ.get("HF_HUB_OFFLINE", "")
    if value.upper() in ("1", "ON", "YES", "TRUE"):
        found = f"HF_HUB_OFFLINE={value}: from_pretrained reads folders and the local cache only"
        return Entry("hub", "note", found)
    return Entry(
        "hub", "ok", "online if from_pretrained gets a hub id; HF_HUB_OFFLINE=1 forbids it"
    )


def installed(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def known_extras() -> dict[str, None]:
    """Names of the extras of the installed suite, in the order of its metadata."""
    names: dict[str, None] = {}
    for line in requires(DISTRIBUTION) or [] if installed(DISTRIBUTION) else []:
        _, found, rest = line.partition("extra ==")
        name = rest.strip().strip("'\"")
        if found and name not in NOT_SHOWN:
            names[name] = None
    return names


def requirements(extra: str) -> list[Requirement]:
    """Requirements that `extra` adds, or those of the suite itself for the empty name."""
    lines = (requires(DISTRIBUTION) or []) if installed(DISTRIBUTION) else []
    parsed = [Requirement(line) for line in lines]
    plain = [need for need in parsed if need.marker is None or need.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [
        need
        for need in parsed
        if need not in plain and need.marker is not None and need.marker.evaluate({"extra": extra})
    ]
