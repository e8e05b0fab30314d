"""`explain` from features to a page: what is written, what goes on, what is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2", reason="needs the extra wsi")
import h5py  # noqa: E402
from PIL import Image  # noqa: E402

from manyhead.acmil import ACMIL, ACMILConfig  # noqa: E402
from manyhead.acmil.explain.command import explain  # noqa: E402
from manyhead.acmil.explain.pictures import file_names  # noqa: E402
from manyhead_core.app import App  # noqa: E402
from manyhead_core.errors import ConfigError, DataError, UserError  # noqa: E402

APP = App(
    name="acmil", title="ACMIL", summary="", extra="wsi", model="manyhead.acmil.model:ACMIL",
    config="", task="manyhead.acmil.task:ACMILTask", data="", evaluate="", demo="", monitor="",
    mode="max",  commands=(),
)  # fmt: skip
COORDS = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * 32
CLASSES = ["benign", "a/b"]


def save_weights(folder: Path, seed: int = 0, classes: list[str] | None = CLASSES) -> str:
    torch.manual_seed(seed)
    net = ACMIL(ACMILConfig(feature_dim=5, dim=8, hidden_dim=4, num_branches=2))
    if classes is not None:
        meta = {"format": 1, "feature_dim": 5, "class_names": classes, "target": "classes"}
        net.preprocessor_state = (meta | {"label_mean": 0.0, "label_scale": 1.0}, {})
    net.save_pretrained(folder)
    return str(folder)


def save_features(path: Path, size: int | None = 32, coords: np.ndarray | None = COORDS) -> None:
    path.parent.mkdir(exist_ok=True)
    draw = np.random.default_rng(len(path.stem))
    with h5py.File(path, "w") as file:
        file["features"] = draw.normal(size=(len(COORDS), 5)).astype(np.float16)
        if coords is not None:
            file["coords"] = coords
            if size is not None:
                file["coords"].attrs["patch_size_level0"] = size


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return save_weights(tmp_path / "weights")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    for name in ("one", "three"):
        save_features(tmp_path / "features" / f"{name}.h5")
    return tmp_path / "features"


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    (tmp_path / "slides").mkdir()
    for name in ("one", "three"):
        pixels = np.full((96, 128, 3), 200, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "slides" / f"{name}.png")
    return tmp_path / "slides"


def report(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "report.csv").open(newline="") as file:
        return {row["id"]: (row["status"], row["error"]) for row in csv.DictReader(file)}


def test_everything_is_written(weights: str, features: Path, slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = explain(APP, weights, features, out, slides=slides, region="10,10,60,60", top=3)
    assert code == 0
    assert report(out) == {"one": ("ok", ""), "three": ("ok", "")}
    maps = ["mean", "branch-0", "branch-1", "class-benign", "class-a-b"]
    wanted = {f"{kind}-{name}.jpg" for kind in ("map", "region") for name in maps}
    wanted |= {f"gallery-{name}.jpg" for name in maps}
    wanted |= {"scores.csv", "top.csv", "patches.geojson", "vectors.npz", "summary.json"}
    found = {path.name for path in (out / "slides" / "one").iterdir()}
    assert found == wanted | {"concentration.png"}
    page = (out / "explain.html").read_text(encoding="utf-8")
    assert "esearch use only, not a medical device" in page
    assert str(tmp_path) not in page
    assert "Pictures of" not in page
    with (out / "embedding.csv").open(newline="") as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["branch 0", "branch 1"] * 2
    with (out / "concentration.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 3


def test_without_slides_it_draws_on_white(weights: str, features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert explain(APP, weights, features, out, slide="one", map="mean", geojson=False) == 0
    assert list(report(out)) == ["one"]
    folder = out / "slides" / "one"
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".jpg", ".json", ".npz", ".png"}
    assert not list(folder.glob("gallery*"))
    assert "Drawn on white" in json.loads((folder / "summary.json").read_text())["notes"][0]


def test_a_second_start_goes_on(
    weights: str, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    explain(APP, weights, features, out, slide=["one"], map="mean")
    before = (out / "slides" / "one" / "scores.csv").stat().st_mtime_ns
    assert explain(APP, weights, features, out, map="mean") == 0
    assert {name: status for name, (status, _) in report(out).items()} == {
        "one": "done before",
        "three": "ok",
    }
    assert (out / "slides" / "one" / "scores.csv").stat().st_mtime_ns == before
    explain(APP, weights, features, out, slide="three", map="mean")
    assert "2 slides" in (out / "explain.html").read_text(encoding="utf-8")


def test_other_options_and_other_weights_need_another_folder(
    weights: str, features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    explain(APP, weights, features, out, slide="one", map="mean")
    with pytest.raises(UserError, match=r"was made with alpha 0\.4, not 0\.5"):
        explain(APP, weights, features, out, slide="one", map="mean", alpha=0.5)
    other = save_weights(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="weights_sha256"):
        explain(APP, other, features, out, slide="one", map="mean")


def test_a_slide_that_fails_costs_itself(weights: str, features: Path, tmp_path: Path) -> None:
    save_features(features / "bad.h5", coords=None)
    save_features(features / "sizeless.h5", size=None)
    out = tmp_path / "out"
    assert explain(APP, weights, features, out, map="mean") == 0
    found = report(out)
    assert found["one"][0] == "ok"
    assert "no coordinates; pass --coords" in found["bad"][1]
    assert "--patch_size_level0, perhaps 32" in found["sizeless"][1]
    assert explain(APP, weights, features, out, map="mean", strict=True) == 2


def test_nothing_that_succeeds_is_exit_code_2(weights: str, tmp_path: Path) -> None:
    save_features(tmp_path / "features" / "bad.h5", coords=COORDS[:-1])
    out = tmp_path / "out"
    assert explain(APP, weights, tmp_path / "features", out) == 2
    assert "11 coordinates for 12 features" in report(out)["bad"][1]


def test_coordinates_from_another_file(weights: str, features: Path, tmp_path: Path) -> None:
    torch.save(torch.randn(len(COORDS), 5), tmp_path / "one.pt")
    places = tmp_path / "places" / "one_patches.h5"
    places.parent.mkdir()
    with h5py.File(places, "w") as file:
        file["coords"] = COORDS
        file["coords"].attrs["patch_size"] = 32
        file["coords"].attrs["patch_size_level0"] = 32
    out = tmp_path / "out"
    code = explain(APP, weights, tmp_path / "one.pt", out, coords=places.parent, map="mean")
    assert (code, report(out)) == (0, {"one": ("ok", "")})


def test_a_slide_that_is_too_small_for_its_patches_is_another_one(
    weights: str, features: Path, slides: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(slides / "one.png")
    out = tmp_path / "out"
    explain(APP, weights, features, out, slides=slides, map="mean")
    assert "a patch starts at (96, 64), the slide has 40 x 40" in report(out)["one"][1]


def test_weights_without_class_names_number_the_classes(features: Path, tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "bare", classes=None)
    out = tmp_path / "out"
    assert explain(APP, weights, features, out, slide="one", map="class:1") == 0
    assert (out / "slides" / "one" / "map-class-1.jpg").is_file()


def test_a_number_is_explained_in_the_units_of_its_label(features: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ACMIL(ACMILConfig(feature_dim=5, dim=8, hidden_dim=4, target="regression"))
    meta = {"format": 1, "feature_dim": 5, "class_names": [], "target": "regression"}
    net.preprocessor_state = (meta | {"label_mean": 50.0, "label_scale": 10.0}, {})
    net.save_pretrained(tmp_path / "number")
    out = tmp_path / "out"
    assert explain(APP, str(tmp_path / "number"), features, out, slide="one", map="mean") == 0
    summary = json.loads((out / "slides" / "one" / "summary.json").read_text())
    numbers = summary["evidence"]["score"]
    assert numbers["constant"] + numbers["patches"] == pytest.approx(numbers["logit"], abs=1e-4)
    assert summary["prediction"] == pytest.approx({"score": numbers["logit"]}, abs=1e-4)
    bias = net.slide_head.bias.item()
    assert numbers["constant"] == pytest.approx(50 + 10 * bias, abs=1e-4)


def test_outlines_are_measured(weights: str, features: Path, slides: Path, tmp_path: Path) -> None:
    ring = [[0, 0], [64, 0], [64, 96], [0, 96], [0, 0]]
    content = {
        "type": "Feature",
        "properties": {},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "one.geojson").write_text(json.dumps(content))
    out = tmp_path / "out"
    explain(APP, weights, features, out, slides=slides, map="mean", annotations=tmp_path / "drawn")
    inside = json.loads((out / "slides" / "one" / "summary.json").read_text())["inside"]
    assert inside["patches in the annotation"] == 0.5
    assert 0 < inside["attention in the annotation"] < 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slide": "four"}, "four has no features"),
        ({"map": "branch:7"}, "2 branches"),
        ({"map": ["mean", "class:x"]}, "known: benign, a/b"),
        ({"region": "0,0,5"}, "region"),
        ({"colormap": "rainbows"}, "matplotlib has no"),
        ({"alpha": 2.0}, "alpha"),
        ({"saturation": 0.0}, "saturation"),
        ({"top": -1}, "top"),
        ({"device": "tpu9"}, "device"),
        ({"annotations": Path("nowhere")}, "no folder nowhere"),
        ({"coords": Path("nowhere")}, "no folder nowhere"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    weights: str, features: Path, tmp_path: Path, options: dict[str, object], says: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        explain(APP, weights, features, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_slides_of_others_are_refused(
    weights: str, features: Path, slides: Path, tmp_path: Path
) -> None:
    for path in slides.iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(DataError, match="none of the 2 slides"):
        explain(APP, weights, features, tmp_path / "out", slides=slides)


def test_names_of_files_are_plain_and_never_the_same() -> None:
    found = file_names(["mean", "class:a/b", "class:a b", "class:A-B", "class:..", "class:é"])
    assert list(found.values()) == [
        "mean", "class-a-b", "class-a-b-2", "class-A-B-3", "class", "class-é",
    ]  # fmt: skip
