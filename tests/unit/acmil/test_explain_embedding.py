"""Points in a plane keep what a plane can keep, and too few of them give none."""

import sys

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from manyhead.acmil.explain.embedding import check_method, figure_of, plane
from manyhead_core.errors import ConfigError


def test_pca_keeps_distances_of_points_that_lie_in_a_plane() -> None:
    draw = np.random.default_rng(0)
    flat = draw.normal(size=(12, 2)) @ draw.normal(size=(2, 9)) + 3
    found = plane(flat)
    assert found is not None
    np.testing.assert_allclose(pdist(found.points), pdist(flat))
    assert np.var(found.points[:, 0]) >= np.var(found.points[:, 1])


def test_the_sign_of_the_axes_is_fixed() -> None:
    vectors = np.random.default_rng(1).normal(size=(8, 4))
    found, again = plane(vectors), plane(vectors[::-1])
    assert found is not None
    assert again is not None
    np.testing.assert_allclose(found.points, again.points[::-1], atol=1e-12)


def test_equal_vectors_and_a_single_number_are_no_accident() -> None:
    same = plane(np.ones((4, 5)))
    assert same is not None
    assert not same.points.any()
    line = plane(np.arange(5.0)[:, None])
    assert line is not None
    assert not line.points[:, 1].any()


def test_too_few_points_give_no_picture() -> None:
    assert plane(np.zeros((2, 3))) is None


def test_umap_is_an_option_that_is_named_when_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"umap-learn.*--embedding pca"):
        check_method("umap")
    check_method("pca")


def test_the_figure_has_a_colour_for_each_group() -> None:
    found = plane(np.random.default_rng(0).normal(size=(20, 3)))
    assert found is not None
    figure = figure_of(found, [f"group {k % 8}" for k in range(20)], {0: "first"})
    assert len(figure.axes[0].collections) == 8
