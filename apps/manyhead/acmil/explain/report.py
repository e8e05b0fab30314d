"""One page and two tables over all slides of a folder of explanations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from manyhead.acmil.explain import concentration, embedding
from manyhead.acmil.explain.embedding import Method
from manyhead.acmil.explain.export import write_table
from manyhead.acmil.explain.overlay import RESEARCH_ONLY, shrunk
from manyhead.acmil.explain.summary import Summary, folder_of, read_summary, read_vectors
from manyhead_core.cli import console
from manyhead_core.errors import DataError
from manyhead_core.evaluate import figures
from manyhead_core.evaluate.html import Page
from manyhead_core.evaluate.palette import INK

PAGE, CONCENTRATION, EMBEDDING = "explain.html", "concentration.csv", "embedding.csv"
# Pictures of more slides would make a page that no browser likes.
SHOWN = 6
NAMED = 25
PANEL = 640

WARNING = (
    "Attention shows where the network looked, not where disease is. Evidence shows what moved "
    "this network's logits. Neither is a diagnosis."
)


def write_report(out: Path, slide_ids: Sequence[str], method: Method = "pca") -> Path:
    """Write `explain.html`, `concentration.csv` and `embedding.csv`.

    Args:
        out: Folder with the explained slides.
        slide_ids: Slides in the order of the page; those without results are left out.
        method: How vectors become points.
    """
    found = _summaries(out, slide_ids)
    write_table(out / CONCENTRATION, _concentration(found))
    count = "1 slide" if len(found) == 1 else f"{len(found)} slides"
    page = Page("Explanation of predictions", f"{count}; {RESEARCH_ONLY}.", "explain")
    page.note(f"{RESEARCH_ONLY.capitalize()}. {WARNING}")
    _overview(page, found)
    _embedding(page, out, found, method)
    for summary in found[:SHOWN]:
        _slide(page, folder_of(out, summary.slide_id), summary)
    if len(found) > SHOWN:
        page.section("More slides")
        page.paragraph(
            f"Pictures of {len(found) - SHOWN} more slides lie in the folder slides, one each."
        )
    return page.write(out / PAGE)


def _summaries(out: Path, slide_ids: Sequence[str]) -> list[Summary]:
    found = []
    for slide_id in slide_ids:
        try:
            found.append(read_summary(folder_of(out, slide_id)))
        except DataError:
            continue  # it has failed, and the report of the batch says so
    return found


def _concentration(found: Sequence[Summary]) -> pd.DataFrame:
    rows = [
        {"slide_id": summary.slide_id, "map": name, **numbers}
        for summary in found
        for name, numbers in summary.concentration.items()
    ]
    return pd.DataFrame(rows)


def _overview(page: Page, found: Sequence[Summary]) -> None:
    page.section("Slides")
    names = list(found[0].prediction) if found else []
    header = ["slide", *names, "patches", "top 10 hold", "effective patches"]
    rows = [
        [
            summary.slide_id,
            *(f"{summary.prediction.get(name, float('nan')):.3f}" for name in names),
            f"{summary.patches:,}",
            f"{100 * summary.concentration['mean']['top_10']:.1f} %",
            f"{summary.concentration['mean']['effective_patches']:.1f}",
        ]
        for summary in found
    ]
    page.table(
        "Prediction of the network, not calibrated, and how concentrated its mean attention is",
        header, rows,
    )  # fmt: skip


def _embedding(page: Page, out: Path, found: Sequence[Summary], method: Method) -> None:
    page.section("Slides and branches in the network's own space")
    kept = [read_vectors(folder_of(out, summary.slide_id)) for summary in found]
    tables = []
    slides = [
        (s.slide_id, _top(s), v["slide"]) for s, v in zip(found, kept, strict=True) if "slide" in v
    ]
    branches = [
        (s.slide_id, f"branch {k}", row)
        for s, v in zip(found, kept, strict=True)
        for k, row in enumerate(v.get("branches", ()))
    ]
    for what, points in (("slides", slides), ("branches", branches)):
        if what == "branches" and len({group for _, group, _ in points}) < 2:
            continue
        plane = embedding.plane(np.stack([row for *_, row in points]), method) if points else None
        if plane is None:
            least = embedding.LEAST[method]
            page.paragraph(
                f"{what.capitalize()}: {len(points)} is too few for a picture, {least} are needed."
            )
            continue
        ids, groups = [point[0] for point in points], [point[1] for point in points]
        named = dict(enumerate(ids)) if what == "slides" and len(ids) <= NAMED else None
        page.figure(
            f"Vectors of {what}, {method.upper()}", embedding.figure_of(plane, groups, named)
        )
        x, y = plane.points.T
        tables.append(
            pd.DataFrame({"slide_id": ids, "kind": what, "group": groups, "x": x, "y": y})
        )
    if tables:
        write_table(out / EMBEDDING, pd.concat(tables, ignore_index=True))


def _top(summary: Summary) -> str:
    if len(summary.prediction) < 2:
        return "slide"
    return f"predicted {max(summary.prediction, key=summary.prediction.__getitem__)}"


def _slide(page: Page, folder: Path, summary: Summary) -> None:
    page.section(summary.slide_id)
    page.facts(
        {name: f"{value:.3f}" for name, value in summary.prediction.items()}
        | {"patches": f"{summary.patches:,}", "side of a patch": f"{summary.patch_size_level0} px"}
        | {name: f"{100 * value:.1f} %" for name, value in summary.inside.items()}
    )
    for note in summary.notes:
        page.paragraph(note)
    maps = {k: v for k, v in summary.pictures.items() if not k.startswith(("gallery", "curve"))}
    for caption, chosen in _rows(maps):
        page.figure(caption, _panels([(name, folder / file) for name, file in chosen]))
    if summary.evidence:
        rows = [
            [name, *(f"{numbers[part]:.3f}" for part in ("constant", "patches", "logit"))]
            for name, numbers in summary.evidence.items()
        ]
        page.table(
            f"Logits, of several classes less their mean ({summary.how})",
            ["output", "constant", "sum of patches", "logit"],
            rows,
        )
    _concentration_of(page, folder, summary)
    for name, file in summary.pictures.items():
        if name == "gallery mean":
            page.figure("Patches with the highest mean attention", _panels([("", folder / file)]))


def _rows(maps: dict[str, str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Pictures that stand side by side."""
    kinds = (
        ("Attention, mean of the branches", ("mean",)),
        ("Attention of single branches or heads", ("branch:", "head:")),
        ("Evidence for the classes; red raises the logit, blue lowers it", ("class:",)),
    )
    found = []
    for caption, starts in kinds:
        for region in (False, True):
            chosen = [
                (name, file)
                for name, file in maps.items()
                if name.startswith(starts) and file.startswith("region") == region
            ]
            if chosen:
                found.append((f"{caption}{', in the region' if region else ''}", chosen))
    return found


def _concentration_of(page: Page, folder: Path, summary: Summary) -> None:
    table = pd.read_csv(folder / "scores.csv")
    maps = {"mean": table["attention"].to_numpy()}
    branches = [str(name) for name in table.columns if str(name).startswith("branch_")]
    maps |= {name.replace("_", " "): table[name].to_numpy() for name in branches}
    page.figure("Cumulative share of the attention", concentration.figure_of(maps))
    header = ["map", *(f"top {k}" for k in concentration.TOPS), "entropy", "effective patches"]
    rows = [
        [name, *(f"{100 * n[f'top_{k}']:.1f} %" for k in concentration.TOPS),
         f"{n['entropy']:.2f}", f"{n['effective_patches']:.1f}"]
        for name, n in summary.concentration.items()
    ]  # fmt: skip
    page.table(
        f"Concentration; even attention would have the entropy {np.log(summary.patches):.2f}",
        header, rows,
    )  # fmt: skip


def _panels(pictures: Sequence[tuple[str, Path]]) -> Figure:
    loaded = []
    for name, path in pictures:
        if not path.is_file():
            console.say(f"note: {path} is gone, so the page does without it")
            continue
        with Image.open(path) as image:
            side = PANEL if len(pictures) > 1 else 2 * PANEL
            loaded.append((name, shrunk(np.asarray(image.convert("RGB")), side)))
    columns = min(3, max(1, len(loaded)))
    rows = -(-len(loaded) // columns) or 1
    width = 7.2
    shape = max((p.shape[0] / p.shape[1] for _, p in loaded), default=1.0)
    single = min(1.0, 0.9 / shape) if columns == 1 else 1.0
    height = rows * (width / columns * shape * single + 0.3)
    figure = Figure((width * single if columns == 1 else width, height), layout="constrained")
    for number, (name, picture) in enumerate(loaded):
        panel = figure.add_subplot(rows, columns, number + 1)
        panel.imshow(picture, interpolation="none")
        panel.set_axis_off()
        panel.set_title(name, fontsize=figures.SMALL, color=INK)
    return figure
