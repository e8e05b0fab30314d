"""The benchmark harness: ratios, spreads, files and missed targets; nothing depends on time."""

from __future__ import annotations

import importlib
import json
import math
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of `benchmarks/`, which is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("harness", "memory", "report", "cases", "__main__")
    modules: dict[str, ModuleType] = {
        name.strip("_"): importlib.import_module(f"benchmarks.{name}") for name in names
    }
    return SimpleNamespace(**modules)


@pytest.fixture
def clock(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a test moves it."""
    now = [0.0]
    monkeypatch.setattr(bench.harness.time, "perf_counter", lambda: now[0])
    return now


def test_ratio_is_taken_within_a_round_and_per_unit(
    bench: SimpleNamespace, clock: list[float]
) -> None:
    rounds = {"slow": count(1), "fast": count(1)}
    order: list[str] = []

    def work(name: str, seconds: float, units: int) -> int:
        order.append(name)
        clock[0] += seconds * next(rounds[name])  # both get slower with every round
        return units

    variants = [
        bench.harness.Variant("slow", lambda: work("slow", 4.0, 2)),
        bench.harness.Variant("fast", lambda: work("fast", 3.0, 6)),
    ]
    slow, fast = bench.harness.compare_work(
        "g", variants, bench.harness.Setting(), unit="row", repeats=4, warm_up=False
    )
    assert order == ["slow", "fast", "fast", "slow"] * 2
    assert slow.unit == "s/row"
    assert slow.cost.median == pytest.approx(2.0 * 2.5)
    assert (slow.cost.low, slow.cost.high) == pytest.approx((2.0 * 1.75, 2.0 * 3.25))
    assert (slow.ratio.median, slow.ratio.iqr) == (1.0, 0.0)
    assert fast.ratio.median == pytest.approx(4.0)
    assert fast.ratio.iqr == pytest.approx(0.0)
    assert fast.baseline == "slow"


def test_named_baseline_and_warm_up(bench: SimpleNamespace, clock: list[float]) -> None:
    calls = {"a": 0, "b": 0}

    def work(name: str, seconds: float) -> int:
        calls[name] += 1
        clock[0] += seconds
        return 1

    variants = [
        bench.harness.Variant("a", lambda: work("a", 1.0)),
        bench.harness.Variant("b", lambda: work("b", 2.0)),
    ]
    a, b = bench.harness.compare_work(
        "g", variants, bench.harness.Setting(), unit="call", repeats=3, baseline="b"
    )
    assert calls == {"a": 4, "b": 4}
    assert (a.ratio.median, b.ratio.median) == (2.0, 1.0)
    assert (a.baseline, b.baseline) == ("b", "b")


def test_compare_times_functions(bench: SimpleNamespace) -> None:
    variants = [
        bench.harness.Variant("a", lambda: None, units=10, extra={"flop": 3.0}),
        bench.harness.Variant("b", lambda: None),
    ]
    a, b = bench.harness.compare(
        "g", variants, bench.harness.Setting(), unit="row", repeats=2, seconds=1e-4
    )
    assert a.extra == {"flop": 3.0}
    assert a.repeats == 2
    assert a.cost.low <= a.cost.median <= a.cost.high
    assert b.ratio.median > 0


def test_flops_count_fused_attention(bench: SimpleNamespace) -> None:
    query = torch.zeros(1, 2, 16, 8)
    found = bench.harness.count_flops(
        lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query)
    )
    assert found == 2 * 2 * (2 * 16 * 16 * 8)


def test_result_survives_json(bench: SimpleNamespace) -> None:
    spread = bench.harness.Spread.of([1.0, 2.0, 4.0])
    result = bench.harness.Result("g", "v", "b", "s/row", spread, spread, 3, {"flop": 1.0})
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["cost"] == {"median": 2.0, "low": 1.5, "high": 3.0, "iqr": 1.5}
    assert bench.harness.Result.from_dict(plain) == result


@pytest.mark.parametrize(
    ("found", "at_least", "met", "word"),
    [
        (49.0, True, False, "MISSED"),
        (50.0, True, True, "met"),
        (50.0, False, False, "MISSED"),
        (49.0, False, True, "met"),
        (None, True, None, "NOT MEASURED"),
    ],
)
def test_targets(
    bench: SimpleNamespace, found: float | None, at_least: bool, met: bool | None, word: str
) -> None:
    target = bench.harness.Target("c", 50, found, "x", at_least=at_least, reason="no compiler")
    assert target.met is met
    line = bench.report.target_line(target)
    assert line.split("  ")[0] == word
    assert ("no compiler" in line) == (found is None)


def test_quartiles_do_not_become_nan(bench: SimpleNamespace) -> None:
    one = bench.harness.Spread.of([3.0])
    assert (one.median, one.low, one.high, one.iqr) == (3.0, 3.0, 3.0, 0.0)
    assert not math.isnan(one.median)


@pytest.fixture
def toy(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two cases in place of the real ones: one misses its target, one crashes."""

    def missed(_setting: object) -> object:
        spread = bench.harness.Spread.of([0.5, 0.5])
        result = bench.harness.Result("sum", "ours", "ours", "s/row", spread, spread, 2)
        target = bench.harness.Target("ours against theirs", 50, 7.0, "x")
        return bench.harness.Outcome([result], [target], ["simulated"])

    def crash(_setting: object) -> object:
        raise RuntimeError("broken case")

    functions = {"benchmarks.cases.toy:run": missed, "benchmarks.cases.bad:run": crash}
    cases = (bench.cases.Case("toy", "misses"), bench.cases.Case("bad", "crashes", ("cpu",)))
    monkeypatch.setattr(bench.main, "CASES", cases)
    monkeypatch.setattr(bench.main.pkgutil, "resolve_name", functions.__getitem__)
    return bench


def test_missed_target_is_printed_and_kept(
    toy: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy.main.main(["toy", "--out", str(tmp_path), "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "MISSED" in shown
    assert "found 7 x, target >= 50 x" in shown
    content = json.loads((tmp_path / "toy-cpu.json").read_text(encoding="utf-8"))
    assert content["targets"] == [
        {"claim": "ours against theirs", "target": ">= 50 x", "found": 7.0, "met": False}
    ]
    assert content["results"][0]["cost"]["median"] == 0.5
    about = content["metadata"]
    assert (about["device"], about["threads"], about["quick"]) == ("cpu", 1, False)
    assert {"torch", "pyarrow", "python", "cpu", "date", "load_average"} <= set(about)
    assert about["notes"] == ["simulated"]


def test_quick_run_does_not_replace_results(toy: SimpleNamespace, tmp_path: Path) -> None:
    assert toy.main.main(["toy", "--out", str(tmp_path), "--quick"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["toy-cpu-quick.json"]


def test_crash_is_reported_and_others_still_run(
    toy: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "bad-cpu.json"
    earlier.write_text("kept", encoding="utf-8")
    assert toy.main.main(["bad", "toy", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "broken case" in err
    assert "crashed: bad" in err
    assert earlier.read_text(encoding="utf-8") == "kept"
    assert (tmp_path / "toy-cpu.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attenton"], "did you mean attention?"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--threads", "0"], "--threads: 0 is not positive"),
    ],
)
def test_mistakes_are_one_line(
    bench: SimpleNamespace,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench.main.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_list_names_every_case(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [case.name for case in bench.cases.CASES]


def test_every_case_has_a_module(bench: SimpleNamespace) -> None:
    files = {path.stem for path in (ROOT / "benchmarks" / "cases").glob("[a-z]*.py")}
    assert {case.name for case in bench.cases.CASES} == files


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_peak_memory_sees_what_was_freed(bench: SimpleNamespace) -> None:
    before = bench.memory.anonymous_bytes()
    with bench.memory.PeakMemory() as memory:
        block = torch.ones(2**24)  # 64 MiB
        held = bench.memory.anonymous_bytes()
        memory.sample()
        del block
    assert held - before > 2**25
    assert memory.peak >= held
