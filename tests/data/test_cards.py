"""The cards against real files, where these lie below --data-dir in the form that users have."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyhead_core.data.cards import get
from manyhead_core.data.check import check

# Card, folder, patterns that the sample leaves out.
COMPLETE = [
    ("movielens-100k", "recsys/ml-100k"),
    ("amazon-beauty", "recsys"),
    ("amazon-toys", "recsys"),
    ("pneumoniamnist", "medical_imaging/medmnist"),
    ("human36m", "pose3d/layout_samples"),
    ("humaneva", "pose3d/layout_samples"),
    ("mpi-inf-3dhp", "pose3d/layout_samples"),
    ("cmu-mocap", "pose3d"),
    ("bonn", "ieeg/bonn_txt"),
    ("swec-ieeg", "ieeg/swec_layout"),
    ("musk1", "wsi/mil_bags"),
    ("elephant", "wsi/mil_bags"),
    ("corel-dogs", "wsi/mil_bags"),
    ("openslide-cmu-1", "wsi"),
    ("camelyon16", "wsi"),
    ("camelyon17", "wsi"),
    ("bracs", "wsi"),
]

# Samples under another name than the card's.
RENAMED = [
    ("criteo", "recsys/criteo/train_examples_10k.txt.gz", "train.txt.gz", "ok"),
    ("movielens-1m", "recsys/ml-1m/ratings_sample20.dat.gz", "ratings.dat.gz", "ok"),
    ("ferplus", "arbex/ferplus_votes_sample.csv", "fer2013new.csv", "400 rows"),
    ("avazu", "recsys/avazu/avazu_sample.txt", "train.csv", "100 rows"),
]


@pytest.mark.parametrize(("name", "place"), COMPLETE)
def test_a_real_folder_is_complete(data_dir: Path, name: str, place: str) -> None:
    folder = data_dir / place
    if not folder.is_dir():
        pytest.skip(f"no {place}")
    assert [found for found in check(get(name), folder) if found.bad] == []


@pytest.mark.parametrize(("name", "place", "as_file", "says"), RENAMED)
def test_a_sample_shows_what_it_lacks(
    data_dir: Path, tmp_path: Path, name: str, place: str, as_file: str, says: str
) -> None:
    if not (data_dir / place).is_file():
        pytest.skip(f"no {place}")
    (tmp_path / as_file).symlink_to(data_dir / place)
    first = next(f for f in check(get(name), tmp_path) if f.file in as_file)
    assert says in (first.state, first.remark[: len(says)])


def test_two_of_three_movielens_files_are_not_enough(data_dir: Path) -> None:
    folder = data_dir / "recsys/ml-1m"
    if not folder.is_dir():
        pytest.skip("no recsys/ml-1m")
    states = {found.file: found.state for found in check(get("movielens-1m"), folder)}
    assert states["users.dat"] == states["movies.dat"] == "ok"
    assert states["ratings.dat"] == "missing"
