"""Classic tables of bags."""

from __future__ import annotations

import numpy as np
import pytest

from manyhead.acmil.mil_csv import read_mil_table
from manyhead_core.errors import DataError


def test_both_forms_give_the_same_bags(tmp_path):
    (tmp_path / "a.csv").write_text("1,1,5,6\n1,1,7,8\n0,2,9,10\n")
    (tmp_path / "a.data").write_text("M1,c1,5,6,1.\nM1,c2,7,8,1.\nM2,c1,9,10,0.\n")
    table, official = (read_mil_table(tmp_path / name) for name in ("a.csv", "a.data"))
    assert table.ids == ["1", "2"]
    assert official.ids == ["M1", "M2"]
    assert table.labels == official.labels == ["1", "0"]
    np.testing.assert_array_equal(table.features[0], [[5, 6], [7, 8]])
    np.testing.assert_array_equal(official.features[1], [[9, 10]])
    assert table.features[0].dtype == np.float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1,5\n0,1,6\n", "bag 1 of a.csv has two labels"),
        ("1,1,5\n0,2,\n", "row 2 of a.csv holds a missing number"),
        ("1,1,five\n0,2,6\n", "is no table of bags"),
        ("", "is no table of bags"),
        ("1\n2\n", "is no table of bags"),
        ("1,2\n0,3\n", "is no table of bags"),
    ],
)
def test_mistakes(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_mil_table(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)
