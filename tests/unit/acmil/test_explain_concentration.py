"""Numbers of attention maps whose concentration is known."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from manyhead.acmil.explain.concentration import concentration, cumulative, figure_of


def test_even_attention() -> None:
    found = concentration(np.full(200, 1 / 200))
    assert found.shares == pytest.approx((0.005, 0.05, 0.5))
    assert found.entropy == pytest.approx(np.log(200))
    assert found.effective == pytest.approx(200)


def test_one_patch_has_it_all() -> None:
    found = concentration(np.array([0.0, 1.0, 0.0]))
    assert found.shares == (1.0, 1.0, 1.0)
    assert str(found.entropy) == "0.0"
    assert found.effective == 1.0


def test_the_curve_rises_to_one_from_the_highest_patch() -> None:
    curve = cumulative(np.array([0.1, 0.6, 0.3]))
    np.testing.assert_allclose(curve, [0.6, 0.9, 1.0])
    row = concentration(np.array([0.1, 0.6, 0.3])).row()
    assert row["top_1"] == pytest.approx(0.6)
    assert row["top_10"] == pytest.approx(1.0)
    assert list(row) == ["patches", "top_1", "top_10", "top_100", "entropy", "effective_patches"]


@pytest.mark.parametrize("patches", [1, 2, 500])
def test_the_figure_has_a_curve_for_each_map(patches: int) -> None:
    weights = np.full(patches, 1 / patches)
    figure = figure_of({"mean": weights, "branch 0": weights})
    assert isinstance(figure, Figure)
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["even", "branch 0", "mean"]
    assert np.asarray(figure.axes[0].get_lines()[-1].get_ydata())[-1] == pytest.approx(1)
