"""`manyhead doctor`: exit codes and remedies, with parts of the installation taken away."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from manyhead import registry
from manyhead.__main__ import main
from manyhead_core.cli import doctor as module
from manyhead_core.cli.doctor import Entry

METADATA = [
    "torch>=2.6",
    "numpy<1",
    "pyarrow>=17; extra == 'rec'",
    "manyhead[rec]; extra == 'all'",
    "ruff; extra == 'dev'",
]
Install = Callable[[dict[str, str]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that exactly these distributions are installed."""

    def pretend(versions: dict[str, str]) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(module, "version", version)
        monkeypatch.setattr(module, "requires", lambda _: METADATA)

    return pretend


def test_this_installation_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert torch.__version__.partition("+")[0] in out
    assert "attend sdpa on cpu" in out
    assert "extra rec (autoint)" in out
    assert out.splitlines()[-1].startswith("everything required works; ")
    assert list(tmp_path.iterdir()) == []


def test_wrong_and_missing_packages_are_broken(install: Install) -> None:
    install({"manyhead": "0.1", "torch": "2.13.0+cpu", "numpy": "2.4"})
    by_topic = {entry.topic: entry for entry in module.versions()}
    assert by_topic["torch"].state == "ok"
    assert by_topic["numpy"] == Entry("numpy", "broken", "2.4, not <1", "pip install 'numpy<1'")
    install({"manyhead": "0.1", "numpy": "0.9"})
    by_topic = {entry.topic: entry for entry in module.versions()}
    assert by_topic["torch"].found == "missing"
    assert by_topic["numpy"].state == "ok"


def test_a_folder_without_installation_is_a_note(install: Install) -> None:
    install({})
    assert [entry.state for entry in module.versions()] == ["ok", "note"]


def test_a_missing_extra_names_the_command_and_breaks_nothing(install: Install) -> None:
    install({"manyhead": "0.1"})
    one = {"autoint": registry.get("autoint")}
    found = list(module.extras(one))
    assert found == [
        Entry("extra rec (autoint)", "note", "missing pyarrow", "pip install 'manyhead[rec]'")
    ]
    install({"manyhead": "0.1", "pyarrow": "20"})
    assert [entry.state for entry in module.extras(one)] == ["ok"]


def test_broken_torchvision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (entry,) = module.torchvision()
    assert entry.state == "broken"
    assert "torchvision::nms" in entry.found
    assert entry.remedy.startswith("pip uninstall torchvision")


def test_exit_code_is_two_when_attention_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(backend: str, _: str) -> float:
        if backend == "sdpa":
            raise RuntimeError("no kernel\nfor this processor")
        return 0.5

    monkeypatch.setattr(module, "try_attend", fails)
    assert main(["doctor", "--runs", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "no kernel for this processor" in out
    assert "off by 5.0e-01" in out
    assert out.splitlines()[-1].startswith("broken: attend eager on cpu, attend sdpa on cpu;")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attend_is_compared_with_float64(backend: module.Backend) -> None:
    assert module.try_attend(backend, "cpu") < 1e-5


def test_folder_that_cannot_be_written_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    assert module.writable(tmp_path / "runs" / "deep").state == "ok"
    monkeypatch.setattr(module.tempfile, "TemporaryFile", refuse)
    entry = module.writable(tmp_path / "runs")
    assert (entry.state, entry.found) == ("note", "not writable: Permission denied")
    assert entry.remedy == "pass --runs FOLDER to fit"


def test_no_compiler_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert module.compiler().state == "note"


def test_offline_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "cache only" in module.hub().found
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert module.hub().state == "ok"
