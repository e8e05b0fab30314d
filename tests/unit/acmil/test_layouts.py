from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from manyhead.acmil.layouts import open_features, slides_in
from manyhead.acmil.layouts.feature_file import all_finite
from manyhead.acmil.layouts.packed import write_packed
from manyhead.acmil.layouts.write import CHUNK_ROWS, FeatureWriter
from manyhead_core.errors import DataError

ROWS, WIDTH = 20, 6
FEATURES = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
COORDS = np.arange(2 * ROWS).reshape(ROWS, 2) * 100


def write_h5(path, names=("features", "coords"), group="", about=None, corners=None, **options):
    with h5py.File(path, "a") as file:
        place = file.require_group(group) if group else file
        place.create_dataset(names[0], data=options.get("features", FEATURES))
        data = place.create_dataset(names[1], data=options.get("coords", COORDS))
        data.attrs.update(corners or {})
        place.attrs.update(about or {})
    return path


def test_clam(tmp_path):
    found = open_features(write_h5(tmp_path / "TCGA-01.6D31.h5"))
    assert found.slide_id == "TCGA-01.6D31"
    assert (found.num_patches, found.feature_dim, found.layout) == (ROWS, WIDTH, "clam")
    np.testing.assert_array_equal(found.features(), FEATURES)
    np.testing.assert_array_equal(found.coords(), COORDS)
    assert found.patch_size_level0 is None


def test_clam_with_the_size_of_a_patch(tmp_path):
    corners = {"patch_size": 256, "downsample": [2.0005, 2.0]}
    found = open_features(write_h5(tmp_path / "a.h5", corners=corners))
    assert found.patch_size_level0 == 512


def test_trident(tmp_path):
    corners = {"patch_size": 256, "patch_size_level0": 512, "savetodir": "/home/jane/x"}
    found = open_features(write_h5(tmp_path / "a.h5", corners=corners))
    assert (found.layout, found.patch_size_level0) == ("trident", 512)
    assert "savetodir" not in found.metadata


def test_stamp(tmp_path):
    about = {"unit": "um", "tile_size_um": 256.0, "extractor": "x"}
    path = write_h5(
        tmp_path / "a.h5",
        ("feats", "coords"),
        about=about,
        features=FEATURES.astype(np.float16),
        coords=(COORDS * 0.25).astype(np.float32),
    )
    found = open_features(path, mpp=0.25)
    np.testing.assert_array_equal(found.coords(), COORDS)
    assert (found.layout, found.patch_size_level0) == ("stamp", 1024)
    assert found.features().dtype == np.float16
    unknown = open_features(path)
    with pytest.raises(DataError, match=r"a: coordinates of a\.h5 are in µm; pass mpp"):
        unknown.coords()
    assert unknown.stored_coords()[1] == "um"


def test_one_file_for_all_slides(tmp_path):
    path = tmp_path / "all.h5"
    for name in ("s1", "s2"):
        write_h5(path, ("feat", "coords"), name, {"label": 1})
    assert slides_in(path) == {"s1": path, "s2": path}
    assert slides_in(tmp_path) == {"s1": path, "s2": path}
    found = open_features(path, "s2")
    assert (found.layout, found.metadata["label"]) == ("acmil", 1)
    np.testing.assert_array_equal(found.features(), FEATURES)
    with pytest.raises(DataError, match=r"all\.h5 holds 2 slides, none is s3"):
        open_features(path, "s3")


@pytest.mark.parametrize("form", ["tensor", "dict", "one batch", "bfloat16", "legacy"])
def test_pt(tmp_path, form):
    tensor = torch.from_numpy(FEATURES)
    content = {
        "dict": {"feats": tensor, "coords": torch.from_numpy(COORDS)},
        "one batch": tensor[None],
        "bfloat16": tensor.bfloat16(),
    }.get(form, tensor)
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    found = open_features(path)
    wanted = tensor.bfloat16().float() if form == "bfloat16" else tensor
    np.testing.assert_array_equal(found.features(), wanted.numpy())
    np.testing.assert_array_equal(found.features(np.array([1, 4])), wanted.numpy()[[1, 4]])
    if form == "dict":
        np.testing.assert_array_equal(found.coords(), COORDS)
    else:
        assert found.coords() is None


@pytest.mark.parametrize("batch", [False, True])
def test_npy(tmp_path, batch):
    np.save(tmp_path / "a.npy", FEATURES[None] if batch else FEATURES)
    found = open_features(tmp_path / "a.npy")
    np.testing.assert_array_equal(found.features(slice(3, 9)), FEATURES[3:9])


@pytest.mark.parametrize("shape", [(0,), (0, WIDTH)])
def test_slides_without_tissue(tmp_path, shape):
    path = write_h5(
        tmp_path / "a.h5", features=np.empty(shape, np.float32), coords=np.empty((0, 2))
    )
    found = open_features(path)
    assert found.num_patches == 0
    assert len(found.features()) == 0
    assert found.coords().shape == (0, 2)


@pytest.mark.parametrize("suffix", [".h5", ".pt", ".npy"])
def test_values_that_are_not_finite_name_the_slide(tmp_path, suffix):
    broken = FEATURES.copy()
    broken[[3, 7], 1] = np.nan
    broken[7, 2] = np.inf
    path = tmp_path / f"slide7{suffix}"
    if suffix == ".h5":
        write_h5(path, features=broken)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(broken), path)
    else:
        np.save(path, broken)
    with pytest.raises(DataError, match=r"slide7: 2 of 20 features in slide7.* are not finite"):
        open_features(path).features()
    assert len(open_features(path).features(slice(0, 3))) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.h5", b"nothing", r"a\.h5: is no readable HDF5"),
        ("a.pt", b"nothing", r"a\.pt: is no readable \.pt"),
        ("a.npy", b"nothing", r"a\.npy: is no readable \.npy"),
        ("a.txt", b"nothing", r"a\.txt is none of"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_features(tmp_path / name)


def test_other_content(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = COORDS
    with pytest.raises(DataError, match=r"a: a\.h5 holds coords, no features"):
        open_features(tmp_path / "a.h5")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pt")
    with pytest.raises(DataError, match=r"b\.pt: holds no tensor"):
        open_features(tmp_path / "b.pt")
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 4)))
    with pytest.raises(DataError, match=r"c: features have the shape \(2, 3, 4\)"):
        open_features(tmp_path / "c.npy")
    with pytest.raises(DataError, match="no file"):
        open_features(tmp_path / "d.h5")


def test_folders(tmp_path):
    for name in ("h5_files", "pt_files", ".hidden"):
        (tmp_path / name).mkdir()
    path = write_h5(tmp_path / "h5_files" / "a.h5")
    torch.save(torch.from_numpy(FEATURES), tmp_path / "pt_files" / "a.pt")
    write_h5(tmp_path / ".hidden" / "b.h5")
    assert slides_in(tmp_path) == {"a": path}  # CLAM keeps the same twice
    other = tmp_path / "other"
    (other / "x").mkdir(parents=True)
    write_h5(other / "a.h5")
    write_h5(other / "x" / "a.h5")
    with pytest.raises(DataError, match=r"a is in a\.h5 and in x/a\.h5"):
        slides_in(other)
    with pytest.raises(DataError, match="no folder"):
        slides_in(tmp_path / "nowhere")


def test_our_own_file(tmp_path):
    about = {"patch_size_level0": 512, "mpp": 0.25, "encoder": "x", "nothing": None}
    with FeatureWriter(tmp_path / "a.h5", ROWS, WIDTH, "float32", about) as file:
        file.append(FEATURES[:15], COORDS[:15])
        assert not (tmp_path / "a.h5").exists()
        file.append(FEATURES[15:], COORDS[15:])
        file.note("later", 3)
    found = open_features(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.features(), FEATURES)
    np.testing.assert_array_equal(found.coords(), COORDS)
    assert (found.layout, found.patch_size_level0, found.chunk_rows) == ("manyhead", 512, ROWS)
    assert found.metadata == {
        "format": 1, "patch_size_level0": 512, "mpp": 0.25, "encoder": "x", "later": 3,
    }  # fmt: skip


def test_chunks_and_fewer_rows_than_announced(tmp_path):
    with FeatureWriter(tmp_path / "a.h5", 3000, 4) as file:
        file.append(np.ones((2500, 4), np.float32), np.zeros((2500, 2), np.int64))
    found = open_features(tmp_path / "a.h5")
    assert (found.num_patches, found.chunk_rows) == (2500, CHUNK_ROWS)
    assert found.coords().shape == (2500, 2)


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    with (
        pytest.raises(DataError, match="a: 1 features are not finite"),
        FeatureWriter(tmp_path / "a.h5", 2, 2) as file,
    ):
        file.append(np.array([[1, np.nan]], np.float32), COORDS[:1])
    assert list(tmp_path.iterdir()) == []


def packed(tmp_path):
    files = [
        open_features(write_h5(tmp_path / "s1.h5", corners={"patch_size_level0": 512})),
        open_features(write_h5(tmp_path / "s2.h5", features=2 * FEATURES, coords=COORDS + 7)),
    ]
    np.save(tmp_path / "s3.npy", 3 * FEATURES[:4])
    files.append(open_features(tmp_path / "s3.npy"))
    assert write_packed(files, tmp_path / "cache", np.float32) == 2 * ROWS + 4
    return tmp_path / "cache"


def test_packed_cache(tmp_path):
    cache = packed(tmp_path)
    where = slides_in(cache)
    assert list(where) == ["s1", "s2", "s3"]
    first, second, third = (open_features(path, name) for name, path in where.items())
    np.testing.assert_array_equal(first.features(), FEATURES)
    np.testing.assert_array_equal(second.features(np.array([0, 19])), 2 * FEATURES[[0, 19]])
    np.testing.assert_array_equal(third.features(), 3 * FEATURES[:4])
    np.testing.assert_array_equal(second.coords(), COORDS + 7)
    assert third.coords() is None
    assert first.patch_size_level0 == 512
    assert first.features().flags.writeable
    with pytest.raises(DataError, match="holds 3 slides, not s4"):
        open_features(where["s1"], "s4")


def test_rows_of_a_neighbour_are_out_of_reach(tmp_path):
    found = open_features(packed(tmp_path) / "packed.json", "s1")
    assert len(found.features(slice(15, 30))) == 5
    with pytest.raises((DataError, IndexError)):
        found.features(np.array([25]))


def test_damaged_cache(tmp_path):
    cache = packed(tmp_path)
    whole = (cache / "features.npy").read_bytes()
    (cache / "features.npy").write_bytes(whole[:200])
    with pytest.raises(DataError, match=r"features\.npy is damaged"):
        open_features(cache / "packed.json", "s1").features()
    (cache / "packed.json").write_text("{")
    with pytest.raises(DataError, match="is no index of a packed cache"):
        slides_in(cache)


@pytest.mark.parametrize("chunks", [(1, 4), (32, 4), (1024, 4), None])
def test_some_rows(tmp_path, chunks):
    values = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=values, chunks=chunks)
    found = open_features(tmp_path / "a.h5")
    generator = np.random.default_rng(1)
    for count in (0, 1, 7, 500, 3000):
        rows = np.sort(generator.choice(3000, count, replace=False))
        np.testing.assert_array_equal(found.features(rows), values[rows])
    edge = np.array([0, 255, 256, 1023, 1024, 2999])
    np.testing.assert_array_equal(found.features(edge), values[edge])
    for wrong in ([2999, 3000], [-1, 4]):
        with pytest.raises(DataError, match=r"a\.h5 is damaged .rows"):
            found.features(np.array(wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 63, 64, 199])
def test_half_precision_is_checked_in_every_place(value, row):
    values = np.random.default_rng(0).uniform(-65504, 65504, (200, 3)).astype(np.float16)
    values[5] = [65504, -65504, 6e-8]
    assert all_finite(values)
    values[row, 2] = value
    assert not all_finite(values)
    assert not all_finite(values[::-1, 1:])
