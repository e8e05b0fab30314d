import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manyhead.registry import get
from manyhead_core.errors import DataError, UserError
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.binary import evaluate_binary
from manyhead_core.evaluate.html import Page
from manyhead_core.evaluate.page import learning_curves, public_config, report
from manyhead_core.evaluate.predictions import write_results

VOID = {"meta", "img", "br", "link", "hr"}


class Outline(HTMLParser):
    """Checks that elements nest, and collects ids, references and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        for value in found.values():
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
            if (value or "").startswith("#"):
                self.references.append(value[1:])

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def table(rows: int = 300, groups: int = 30) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    score = generator.random(rows)
    columns = {"id": np.arange(rows), "group": [f"g{k % groups}" for k in range(rows)], "site": ""}
    columns |= {"label": (generator.random(rows) < score).astype(int), "status": "ok"}
    columns |= {"score": score, "segment_age": np.where(score > 0.4, "<old>", "young")}
    return pd.DataFrame(columns)


def run_folder(folder: Path, frame: pd.DataFrame, checkpoint: str = "abc") -> Path:
    meta = {"app": "autoint", "config": "small", "seed": 3, "checkpoint_hash": checkpoint}
    meta["environment"] = {"python": "3.11", "torch": "2.13"}
    write_results(folder, frame, evaluate_binary(frame, draws=20), meta)
    (folder / "config.yaml").write_text("data:\n  root: /home/jane.doe/ward-3/ml-1m\n  batch: 8\n")
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,val/auroc,lr-Adam\n0,9,0.7,,0.1\n0,19,0.6,,0.1\n0,19,,0.71,\n"
    )
    return folder


def test_the_report_is_one_well_formed_file_with_every_section(tmp_path: Path) -> None:
    report(get("autoint"), run_folder(tmp_path, table()))
    text = (tmp_path / "report.html").read_text()
    outline = Outline(text)
    titles = re.findall(r'<h2 id="section-\d+">([^<]+)</h2>', text)
    assert titles == [
        "Result", "Ranking", "Calibration", "Segments", "Training",
        "What these numbers are not", "Origin",
    ]  # fmt: skip
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(outline.references) <= set(outline.ids)
    loaded = [a for _, a in outline.tags if a.get("src") or str(a.get("href", "#"))[:1] != "#"]
    assert not loaded
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", text)


def test_the_page_is_accessible(tmp_path: Path) -> None:
    report(get("autoint"), run_folder(tmp_path, table()))
    outline = Outline((tmp_path / "report.html").read_text())
    assert ("html", {"lang": "en"}) in outline.tags
    assert all(a.get("aria-label") for tag, a in outline.tags if tag == "svg" and "role" in a)
    assert sum(tag == "svg" for tag, _ in outline.tags) == 5
    assert all(a.get("scope") in ("col", "row") for tag, a in outline.tags if tag == "th")
    tables = sum(tag == "table" for tag, _ in outline.tags)
    assert tables == sum(tag == "caption" for tag, _ in outline.tags) > 3


def test_text_is_escaped_and_paths_are_cut(tmp_path: Path) -> None:
    report(get("autoint"), run_folder(tmp_path, table()))
    text = (tmp_path / "report.html").read_text()
    assert "<old>" not in text
    assert "&lt;old&gt;" in text
    assert "jane.doe" not in text
    assert "ml-1m" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/a/b/c", ".../c"),
        ("~/x/y/", ".../y"),
        ("C:\\data\\z", ".../z"),
        ("movielens/small", "movielens/small"),
        ("adam", "adam"),
    ],
)
def test_public_config_keeps_the_last_part_of_a_path(
    tmp_path: Path, given: str, shown: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"data:\n  roots: ['{given}']\n")
    assert shown in public_config(file)
    assert shown == given or given not in public_config(file)


def test_medical_apps_say_so_and_others_do_not(tmp_path: Path) -> None:
    run_folder(tmp_path, table())
    report(get("autoint"), tmp_path)
    assert "not a medical device" not in (tmp_path / "report.html").read_text()
    report(replace(get("autoint"), medical=True), tmp_path)
    assert "not a medical device" in (tmp_path / "report.html").read_text()


def test_few_groups_are_shown_and_one_class_has_no_curve(tmp_path: Path) -> None:
    run_folder(tmp_path / "few", table(groups=4))
    report(get("autoint"), tmp_path / "few")
    assert "Too few groups" in (tmp_path / "few" / "report.html").read_text()
    run_folder(tmp_path / "one", table().assign(label=0))
    report(get("autoint"), tmp_path / "one")
    text = (tmp_path / "one" / "report.html").read_text()
    assert "ROC curve;" not in text
    assert "one class" in text


def test_only_an_earlier_report_of_the_run_is_replaced(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "a", table())
    other = run_folder(tmp_path / "b", table(), checkpoint="def")
    page = tmp_path / "page.html"
    report(get("autoint"), first, out=page)
    report(get("autoint"), first, out=page)
    before = page.read_text()
    with pytest.raises(UserError, match="choose another name"):
        report(get("autoint"), other, out=page)
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(UserError, match="choose another name"):
        report(get("autoint"), first, out=mine)
    assert (page.read_text(), mine.read_text()) == (before, "<p>mine</p>")


def test_results_of_another_app_are_refused(tmp_path: Path) -> None:
    run_folder(tmp_path, table())
    with pytest.raises(DataError, match="belongs to the app autoint, not to other"):
        report(replace(get("autoint"), name="other"), tmp_path)


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run_folder(tmp_path, table())
    report(get("autoint"), tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    report(get("autoint"), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


def test_learning_curves_are_grouped_by_quantity() -> None:
    nan = np.nan
    table = pd.DataFrame({"step": [1, 2], "train/loss": [3.0, nan], "val/loss": [nan, 2.0]})
    table["train/loss_epoch"] = 1.0
    table["lr-Adam"] = table["lr-Adam/embedding"] = 0.1
    found = learning_curves(table)
    assert list(found) == ["loss"]
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in found["loss"].items()} == {
        "train": ([1], [3.0]),
        "val": ([2], [2.0]),
    }


def test_every_figure_is_drawn_and_two_pages_of_figures_do_not_share_ids(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    page = Page("Figures", "All of them.")
    page.section("One & all")
    page.figure("map", figures.heatmap(np.eye(3) * 0.5, names, "query", "key"))
    page.figure("map", figures.heatmap(np.zeros((3, 3)), names))
    page.figure("bars", figures.bars(names, [0.3, 0.2, -0.1], [0.1, 0.1, 0.0], "drop"))
    page.figure("points", figures.intervals(names, [1, 2, 3], [(0, 2), (None, None), (2, 4)]))
    page.figure("curves", figures.curves({"loss": {"train": ([1, 2], [2, 1])}}, "step"))
    page.table("t", ["name", "n"], [["x", "1,234"], ["y", "-5.1e-3"]])
    page.table("empty", ["name"], [])
    page.code("c", "a < b")
    outline = Outline(page.write(tmp_path / "figures.html").read_text())
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(outline.references) <= set(outline.ids)
    numbers = [a for tag, a in outline.tags if tag == "td" and a.get("class") == "number"]
    assert len(numbers) == 2


def test_figures_follow_the_colour_scheme_and_a_huge_one_becomes_an_image() -> None:
    page = Page("P", "i")
    page.figure("bars", figures.bars(["a"], [1.0]))
    assert "var(--series-1)" in page.html()
    assert "prefers-color-scheme" in page.html()
    figure, (panel,) = figures.canvas()
    generator = np.random.default_rng(0)
    panel.scatter(generator.random(9000), generator.random(9000))
    page.figure("cloud", figure)
    assert '<img alt="cloud" src="data:image/png;base64,' in page.html()
