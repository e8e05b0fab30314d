import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyhead.autoint.interactions import (
    local_effects,
    logits,
    pair_interaction,
    permutation_importance,
    replace_field,
    shuffle_field,
    slices,
)
from manyhead.autoint.model import AutoIntOutput
from manyhead.autoint.rows import Rows

FIELDS = ("a", "b", "c", "list")


@pytest.fixture
def rows() -> Rows:
    generator = torch.Generator().manual_seed(0)
    value = torch.randint(2, (500, 3), generator=generator).float() * 2 - 1
    ids = torch.randint(4, (500, 2), generator=generator, dtype=torch.int32)
    return Rows(
        torch.zeros(500, 3, dtype=torch.int32),
        value,
        ((ids, torch.ones(500, 2)),),
        (value[:, 0] * value[:, 1] > 0).float(),
        torch.arange(500),
        torch.full((500,), -1),
    )


class Formula(nn.Module):
    """2ab + c + (sum of the list's ids): one interaction, two additive fields."""

    def forward(self, index: Tensor, value: Tensor, lists: tuple) -> AutoIntOutput:
        product = 2 * value[:, 0] * value[:, 1]
        return AutoIntOutput(product + value[:, 2] + lists[0][0].sum(1))


def test_only_the_planted_pair_interacts(rows: Rows) -> None:
    table = pair_interaction(Formula(), rows, FIELDS, repeats=4)
    assert len(table) == 6
    assert (table.loc[0, "first"], table.loc[0, "second"]) == ("a", "b")
    # Differences of two signs: 2 (a - a')(b - b') has root mean square 4 over random pairs.
    assert table.loc[0, "interaction"] == pytest.approx(4, rel=0.15)
    assert table["interaction"][1:].max() < 1e-5


def test_importance_is_what_shuffling_costs(rows: Rows) -> None:
    class Product(Formula):
        def forward(self, index: Tensor, value: Tensor, lists: tuple) -> AutoIntOutput:
            return AutoIntOutput(2 * value[:, 0] * value[:, 1])

    table = permutation_importance(Product(), rows, FIELDS, repeats=3).set_index("field")
    assert table.loc["a", "auc_drop"] == pytest.approx(0.5, abs=0.1)
    assert table.loc["b", "auc_drop"] == pytest.approx(0.5, abs=0.1)
    assert table.loc[["c", "list"], "auc_drop"].abs().max() == 0
    assert table.loc["c", "shift"] == 0


def test_fields_are_exchanged_between_rows_only(rows: Rows) -> None:
    order = torch.roll(torch.arange(500), 1)
    changed = replace_field(rows, 1, order)
    assert torch.equal(changed.value[:, 1], rows.value[order, 1])
    assert torch.equal(changed.value[:, [0, 2]], rows.value[:, [0, 2]])
    moved = shuffle_field(rows, 3, torch.Generator().manual_seed(1))
    assert torch.equal(moved.value, rows.value)
    before, after = rows.lists[0][0].sum(1).sort().values, moved.lists[0][0].sum(1).sort().values
    assert torch.equal(before, after)
    assert not torch.equal(rows.lists[0][0], moved.lists[0][0])


def test_batches_do_not_change_the_scores(rows: Rows) -> None:
    assert sum(len(part.label) for part in slices(rows, 128)) == 500
    np.testing.assert_array_equal(logits(Formula(), rows, 7), logits(Formula(), rows, 500))


def test_local_effect_is_the_change_against_other_rows(rows: Rows) -> None:
    table = local_effects(Formula(), rows, [3, 7], FIELDS, background=500)
    assert table["row"].tolist() == [3] * 4 + [7] * 4
    found = table.set_index(["row", "field"])["effect"]
    # c enters as itself, and its mean over the rows is near zero.
    for place in (3, 7):
        assert found[place, "c"] == pytest.approx(float(rows.value[place, 2]), abs=0.15)
        product = 2 * float(rows.value[place, 0] * rows.value[place, 1])
        assert found[place, "a"] == pytest.approx(product, abs=0.3)
        assert table[table["row"] == place]["effect"].abs().is_monotonic_decreasing
