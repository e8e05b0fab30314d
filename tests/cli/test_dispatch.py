"""What answers before any app is loaded, and commands that are plain functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = "torch", "pytorch_lightning", "pandas", "numpy", "jsonargparse", "rich"


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)])
def test_help_names_apps_and_commands(cli, words):
    done = cli(*words)
    assert (done.code, done.err) == (0, "")
    assert "toy" in done.out
    assert "logistic regression on three features" in done.out
    assert "greet" in done.out


@pytest.mark.parametrize("words", [("toy",), ("toy", "-h"), ("toy", "--help")])
def test_help_of_an_app_names_every_command(cli, words):
    done = cli(*words)
    assert (done.code, done.err) == (0, "")
    for name in ("fit", "validate", "test", "add", "configs"):
        assert f"\n  {name} " in done.out


def test_version(cli):
    assert cli("--version").out == "manyhead 1.2.3\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["toy"], ["toy", "configs"]])
def test_light_answers_import_nothing_heavy(words):
    toy = Path(__file__).parent / "toy"
    allowed = ("jsonargparse",) if words == ["toy", "configs"] else ()
    heavy = [name for name in HEAVY if name not in allowed]
    code = (
        f"import sys; sys.path.insert(0, {str(toy)!r}); from toyapp.row import APP\n"
        "from manyhead_core.cli.main import run\n"
        f"code = run({words!r}, {{'toy': APP}}, (), '0')\n"
        f"print([name for name in {heavy!r} if name in sys.modules], code, file=sys.stderr)"
    )
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("toi", "fit"),
            "manyhead: unknown app or command 'toi'; did you mean toy? known: data, greet, toy",
        ),
        (
            ("data", "lits"),
            "manyhead: unknown command of data 'lits'; did you mean list? known: list",
        ),
        (
            ("greet", "--nam", "x"),
            "manyhead greet: unknown option --nam; did you mean --name?",
        ),
        (
            ("toy", "fitt"),
            "manyhead toy: unknown command 'fitt'; did you mean fit? "
            "known: add, broken, configs, crash, fit, stop, test, validate",
        ),
        (
            ("toy", "configs", "smal"),
            "manyhead toy: unknown config 'smal'; did you mean small? known: small, wide",
        ),
        (
            ("toy", "broken"),
            "manyhead toy: package 'onnxscript_that_nobody_has' is missing; "
            "run: pip install 'manyhead[rec]'",
        ),
    ],
)
def test_typos_cost_one_line(cli, words, line):
    done = cli(*words)
    assert (done.code, done.out, done.line) == (2, "", line)


def test_two_word_commands(cli):
    assert cli("data", "list", "--name", "you all").out == "hello you all\n"
    assert "usage: manyhead data COMMAND" in cli("data").out


def test_a_function_gets_positionals_options_and_the_app(cli):
    done = cli("toy", "add", "here", "1", "2", "--scale", "1.5", "--label", "sum")
    assert (done.code, done.out) == (0, "toy here sum 4.5 plain\n")
    assert cli("toy", "add", "here", "--label", "sum", "--style", "loud").code == 3


def test_help_of_a_function_shows_its_docstring(cli):
    done = cli("toy", "add", "--help")
    assert (done.code, done.err) == (0, "")
    for text in ("usage: manyhead toy add", "Add numbers.", "Where from.", "Factor.", "1.0"):
        assert text in done.out
    assert "<class" not in done.out
    assert "The app." not in done.out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("here",), ("label",)),
        ((), ("first",)),
        (("here", "one", "--label", "x"), ("numbers", "one")),
        (("here", "--label", "x", "--scale", "big"), ("scale", "big")),
        (("here", "--label", "x", "--style", "odd"), ("style", "plain", "loud", "odd")),
        (("", "--label", "x"), ("first: is empty",)),
    ],
)
def test_mistakes_in_a_function_command(cli, words, parts):
    done = cli("toy", "add", *words)
    assert (done.code, done.out) == (2, "")
    assert done.line.startswith("manyhead toy")
    assert all(part in done.line for part in parts), done.line


def test_interrupt(cli):
    done = cli("toy", "stop")
    assert (done.code, done.line) == (130, "manyhead toy: interrupted")


def test_our_own_mistakes_keep_their_traceback(cli):
    with pytest.raises(ZeroDivisionError):
        cli("toy", "crash")


def test_debug_shows_the_traceback_of_a_mistake(cli, monkeypatch):
    monkeypatch.setenv("MANYHEAD_DEBUG", "1")
    done = cli("toy", "configs", "smal")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("manyhead toy: unknown config")


def test_notices_are_dropped_with_q(cli):
    assert "research use only" in cli("toy", "configs").err
    assert cli("-q", "toy", "configs").err == ""


def test_the_suite_itself_answers():
    call = [sys.executable, "-m", "manyhead"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=60)
    assert "autoint" in done.stdout
