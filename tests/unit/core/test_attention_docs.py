"""The generated parts of docs/attention.md are what registry and results say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from manyhead_core.attention.registry import MIXERS

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "attention.md"
NAMES = (
    "harness",
    "report",
    "plots",
    "attention_page",
    "cases.attention_length",
    "cases.attention_cab",
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of `benchmarks/`, which is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    return SimpleNamespace(
        **{n.split(".")[-1]: importlib.import_module(f"benchmarks.{n}") for n in NAMES}
    )


def test_page_shows_the_registry(bench: SimpleNamespace) -> None:
    table = bench.attention_page.capabilities()
    assert table in PAGE.read_text(encoding="utf-8"), "run python -m benchmarks.attention_page"
    assert table.count("\n") == len(MIXERS) + 1


def test_page_shows_the_results(bench: SimpleNamespace) -> None:
    part = bench.attention_page.costs(bench.attention_page.read())
    assert part in PAGE.read_text(encoding="utf-8"), "run python -m benchmarks.attention_page"


def test_figure_of_the_page_exists_and_is_light(bench: SimpleNamespace) -> None:
    shown = f"](figures/{bench.attention_page.FIGURE.name})" in PAGE.read_text(encoding="utf-8")
    assert shown == (bench.attention_page.read() is not None)
    if shown:
        assert 1000 < bench.attention_page.FIGURE.stat().st_size < 100_000


@pytest.fixture
def series(bench: SimpleNamespace) -> list[object]:
    """Made-up times: `linear` is one, `moh` as steep as `softmax`, `halo` stops early."""
    found = []
    for work in (bench.attention_length.FORWARD, bench.attention_length.TRAINING):
        for n in (256, 512, 1024, 2048, 4096, 8192):
            seconds = {"softmax": n**2, "linear": 1000 * n, "moh": 2 * n**2, "halo": 5000 * n}
            for name, cost in seconds.items():
                if name == "halo" and n > 1024:
                    continue
                result = bench.harness.Result(
                    bench.attention_length.group_name("NS", work, n),
                    name,
                    "softmax",
                    "s/token",
                    bench.harness.Spread.of([cost / n]),
                    bench.harness.Spread.of([seconds["softmax"] / cost]),
                    1,
                    {"peak_bytes": float(cost), "tokens": float(n)},
                )
                found.append(result)
    return found


def test_efficiency_length_is_where_the_fits_cross(
    bench: SimpleNamespace, series: list[object]
) -> None:
    case = bench.attention_length

    def length(name: str) -> float | None:
        return case.efficiency_length(series, name, "NS", case.TRAINING)

    assert length("linear") == pytest.approx(1000, rel=1e-3)
    # Neither a mixer as steep as softmax nor a crossing far from what was measured counts.
    assert [length(name) for name in ("softmax", "moh", "halo", "bra")] == [None] * 4
    assert case.curve(series, "linear", "NS", case.TRAINING).first_win == 1024
    assert case.curve(series, "moh", "NS", case.TRAINING).first_win is None


def test_page_of_results_has_a_row_for_each_mixer_and_pattern(
    bench: SimpleNamespace, series: list[object], tmp_path: Path
) -> None:
    outcome = bench.harness.Outcome(series)
    about = {"cpu": "some CPU", "torch": "2.0", "date": "2026-01-02T03:04:05"}
    path = bench.report.write(tmp_path, "case", outcome, bench.harness.Setting(), about)
    content = json.loads(path.read_text(encoding="utf-8"))
    text = bench.attention_page.costs(content)
    rows = [line for line in text.splitlines() if line.startswith("| NS")]
    assert rows == [
        "| NS | `linear` | 1,000 | 1,000 | 1,000 | 1,024 | 4.1 | 4.1 | 0.24 |",
        "| NS | `moh` | none | none | none | none | 0.5 | 0.5 | 2 |",
        "| NS | `halo` | none | none | none | none | too slow | too slow | not measured |",
    ]
    page = bench.attention_page.page(PAGE.read_text(encoding="utf-8"), content)
    assert text in page
    assert bench.attention_page.page(page, content) == page


def test_figure_is_small_and_the_same_each_time(
    bench: SimpleNamespace, series: list[object], tmp_path: Path
) -> None:
    paths = [tmp_path / "new" / name for name in ("a.svg", "b.svg")]
    for path in paths:
        bench.plots.write_svg(bench.plots.length_figure(series), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert len(first) < 100_000
    assert b">tokens</text>" in first


def test_length_case_measures_what_it_is_asked_for(bench: SimpleNamespace) -> None:
    case = bench.attention_length
    setting = bench.harness.Setting(quick=True)
    found = case.series("NS", case.TRAINING, ["softmax", "linear"], setting)
    assert {(r.variant, r.extra["tokens"]) for r in found} == {
        (name, float(length)) for name in ("softmax", "linear") for length in case.QUICK
    }
    # Inputs 64 wide in float32: gradients of so many tokens have to be there at least.
    assert all(r.extra["peak_bytes"] > 4 * 64 * r.extra["tokens"] for r in found)


def test_series_ends_before_a_call_that_is_too_large(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = bench.attention_length
    monkeypatch.setattr(case, "LARGE_BYTES", 1)
    found = case.series("NC", case.FORWARD, ["linear"], bench.harness.Setting(quick=True))
    assert [r.variant for r in found] == ["softmax", "linear", "softmax", "softmax"]


def test_composite_index_counts_deviations_with_the_sign_of_the_metric(
    bench: SimpleNamespace,
) -> None:
    found = bench.attention_cab.composite_index(
        {
            "a": {"share_hit": 0.9, "log_loss": 1.0, "same": 1.0},
            "b": {"share_hit": 0.7, "log_loss": 3.0, "same": 1.0},
        }
    )
    assert found == pytest.approx({"a": 2 / 3, "b": -2 / 3})


@pytest.mark.parametrize("number", range(4))
def test_each_task_trains_two_mixers_and_reports_metrics(
    bench: SimpleNamespace, number: int
) -> None:
    case = bench.attention_cab
    task = case.TASKS[number]
    known, unseen = (part.batch(case.torch.arange(64)) for part in task.draw(0))
    rounds = [
        {name: case.train(task, name, 0, (known, unseen), 2) for name in ("softmax", "uniform")}
    ]
    results = case.results_of(task, rounds)
    assert [r.variant for r in results] == ["softmax", "uniform"]
    assert sum(r.extra["composite_index"] for r in results) == pytest.approx(0, abs=1e-9)
    assert all(0 <= r.extra["share_hit"] <= 1 < 10 > r.extra["log_loss"] > 0 for r in results)


def test_tasks_cover_all_patterns_and_draw_the_same_samples_for_a_seed(
    bench: SimpleNamespace,
) -> None:
    assert [task.pattern for task in bench.attention_cab.TASKS] == ["NS", "CS", "NC", "CC"]
    for task in bench.attention_cab.TASKS:
        (first, _), (again, _), (other, _) = task.draw(0), task.draw(0), task.draw(1)
        assert (first.tokens == again.tokens).all()
        assert (first.target == again.target).all()
        assert (first.tokens != other.tokens).any()
