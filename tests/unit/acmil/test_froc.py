import json
from pathlib import Path

import numpy as np
import pytest

from manyhead.acmil.annotations import Outline, collection, feature, write_geojson
from manyhead.acmil.froc import (
    RATES,
    MarkedSlide,
    extent,
    froc,
    froc_command,
    inside,
    suppress,
)
from manyhead_core.errors import DataError, UserError


def square(x: float, y: float, side: float, **about: object) -> Outline:
    corners = np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)
    return Outline(corners, **about)


def slide(points: list, scores: list, lesions: list, mpp: float = 1.0) -> MarkedSlide:
    return MarkedSlide(np.array(points, float).reshape(-1, 2), np.array(scores), lesions, mpp)


def test_sensitivities_by_hand() -> None:
    lesions = [square(0, 0, 300), square(1000, 0, 300)]
    # Falling scores: hit of the first, false, hit of the second, hit again (no gain), 2 x false.
    tumour = slide(
        [(10, 10), (700, 700), (1100, 100), (20, 20), (600, 600), (500, 600)],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        lesions,
    )
    normal = slide([(5, 5)], [0.75], [])
    found = froc([tumour, normal])
    # At 0.9: half the lesions, no false positive. At 0.7: all, and 2 in 2 slides.
    assert [entry.value for entry in found.sensitivity] == [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert found.mean.value == pytest.approx(5 / 6)
    assert (found.num_lesions, found.num_ignored, found.num_slides) == (2, 0, 2)
    assert found.mean.low is None


def brute_force(slides: list[MarkedSlide]) -> list[float]:
    lesions = sum(len(entry.lesions) for entry in slides)
    within = [
        np.array([inside(part, entry.points) for part in entry.lesions], bool).reshape(-1, 40)
        for entry in slides
    ]
    best = dict.fromkeys(RATES, 0.0)
    for threshold in np.unique(np.concatenate([entry.scores for entry in slides])):
        hits = alarms = 0
        for entry, found in zip(slides, within, strict=True):
            chosen = entry.scores >= threshold
            hits += int((found & chosen).any(axis=1).sum())
            alarms += int((chosen & ~found.any(axis=0)).sum())
        for rate in RATES:
            if alarms / len(slides) <= rate:
                best[rate] = max(best[rate], hits / lesions)
    return list(best.values())


def random_slides(number: int, seed: int = 0) -> list[MarkedSlide]:
    generator = np.random.default_rng(seed)
    slides = []
    for k in range(number):
        lesions = [square(*generator.integers(0, 3000, 2), 400) for _ in range(k % 4)]
        points = generator.integers(0, 3400, (40, 2)) + 0.5 * (k % 2)
        scores = np.round(generator.random(40), 2)
        for lesion in lesions:
            scores[inside(lesion, points)] += 0.7
        slides.append(MarkedSlide(points, scores, lesions, 1.0))
    return slides


def test_the_curve_equals_a_search_over_all_thresholds() -> None:
    slides = random_slides(12)
    found = froc(slides, draws=200)
    assert [entry.value for entry in found.sensitivity] == pytest.approx(brute_force(slides))
    assert 0 < found.mean.low < found.mean.value < found.mean.high < 1


def test_small_lesions_neither_count_nor_disturb() -> None:
    # 120 px of 0.5 µm are 85 µm on the diagonal; 600 px are 424 µm.
    lesions = [square(0, 0, 120), square(1000, 0, 600)]
    marked = slide([(60, 60), (1100, 100)], [0.9, 0.1], lesions, mpp=0.5)
    found = froc([marked])
    assert (found.num_lesions, found.num_ignored) == (1, 1)
    assert found.sensitivity[0].value == 1.0
    with pytest.raises(DataError, match="no lesion of 500 µm or more in 1 slides"):
        froc([marked], min_size=500)
    assert froc([marked], min_size=0).num_lesions == 2


@pytest.mark.parametrize("name", ["_2", "Exclusion"])
def test_holes_and_excluded_outlines_are_outside(name: str) -> None:
    hole = square(100, 100, 100).polygon
    whole = slide([(150, 150)], [1.0], [square(0, 0, 300)])
    holed = slide([(150, 150)], [1.0], [square(0, 0, 300, holes=(hole,))])
    cut = slide([(150, 150)], [1.0], [square(0, 0, 300), square(100, 100, 100, name=name)])
    assert froc([whole]).sensitivity[-1].value == 1.0
    assert froc([holed]).sensitivity[-1].value == 0.0
    assert froc([cut]).sensitivity[-1].value == 0.0
    assert froc([cut]).num_lesions == 1


def test_extent_is_the_longest_diagonal() -> None:
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 1000, (30, 2))
    far = np.linalg.norm(corners[:, None] - corners[None], axis=-1).max()
    assert extent(corners) == pytest.approx(far, rel=4e-5)


def test_suppress_keeps_maxima_only() -> None:
    points = np.array([[0, 0], [10, 0], [20, 0], [100, 0]])
    scores = np.array([0.1, 0.9, 0.5, 0.2])
    assert suppress(points, scores, 15).tolist() == [1, 3]
    assert suppress(points, scores, 0).tolist() == [1, 2, 3, 0]
    assert suppress(points[:0], scores[:0], 15).tolist() == []


def test_the_command_reads_files_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    lesion = feature([square(0, 0, 1000).polygon], "Tumour", (200, 0, 0))
    write_geojson(folder / "a.geojson", collection([lesion]))
    points = tmp_path / "points.csv"
    points.write_text("slide_id,x,y,score\na,10,10,0.5\na,15,10,0.4\nb,3,3,0.9\n")
    out = tmp_path / "froc.json"
    froc_command(points, folder, mpp=0.25, out=out)
    found = json.loads(out.read_text())
    # One false positive in two slides.
    assert [entry["value"] for entry in found["sensitivity"]] == [0, 1, 1, 1, 1, 1]
    assert "not a medical device" in capsys.readouterr().out
    slides = tmp_path / "slides.csv"
    slides.write_text("slide_id,mpp\na,0.25\nb,\nc,0.5\nd,0.5\n")
    froc_command(points, folder, slides=slides, mpp=0.25)
    assert "1 lesions in 4 slides" in capsys.readouterr().out
    with pytest.raises(UserError, match="slide b has no µm per pixel"):
        froc_command(points, folder, slides=slides)
    with pytest.raises(UserError, match="exists; choose another name"):
        froc_command(points, folder, mpp=0.25, out=out)
    points.write_text("slide_id,x,y,score\na,10,ten,0.5\n")
    with pytest.raises(DataError, match="y is 'ten' in row 1"):
        froc_command(points, folder, mpp=0.25)
