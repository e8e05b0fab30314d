"""Plans that say which mixer each layer has."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhead_core.attention.plans import build_layers, hybrid, wide_config
from manyhead_core.attention.registry import MIXERS
from manyhead_core.errors import ConfigError, UserError


def names(plan, layers: int | None = None) -> list[str]:
    return [config["name"] for config in hybrid(plan, layers)]


def test_wide_config_keeps_the_heads_in_one_layer() -> None:
    assert wide_config(6, 8, 64) == (1, 48, 64)
    assert wide_config(1, 1, 1) == (1, 1, 1)
    with pytest.raises(ConfigError, match="heads: must be 1 or more, got 0"):
        wide_config(6, 0, 64)


@given(st.lists(st.tuples(st.sampled_from(sorted(MIXERS)), st.integers(1, 4)), min_size=1))
def test_hybrid_repeats_each_name_as_often_as_it_says(runs: list[tuple[str, int]]) -> None:
    plan = " , ".join(f"{name} * {count}" for name, count in runs)
    expected = [name for name, count in runs for _ in range(count)]
    assert names(plan) == expected
    assert names(expected, len(expected)) == expected


def test_hybrid_reads_the_plan_of_the_paper() -> None:
    assert names("spectral*4,softmax*8") == ["spectral"] * 4 + ["softmax"] * 8


def test_hybrid_reads_lists_of_names_and_mappings() -> None:
    found = hybrid(["softmax", "linear*2", {"name": "bra", "num_windows": 7, "topk": 4}])
    assert found == [
        {"name": "softmax"},
        {"name": "linear"},
        {"name": "linear"},
        {"name": "bra", "num_windows": 7, "topk": 4},
    ]


def test_hybrid_makes_every_third_layer_another() -> None:
    plan = {"default": "dynamic_mask", "every": 3, "name": "softmax"}
    expected = ["dynamic_mask", "dynamic_mask", "softmax"] * 2 + ["dynamic_mask"]
    assert names(plan, 7) == expected
    assert names({**plan, "layers": 7}) == expected
    assert names({**plan, "every": 1}, 2) == ["softmax"] * 2
    rest = {"name": "dynamic_mask", "keep_window": 5}
    assert hybrid({**plan, "default": rest}, 1) == [rest]


def test_hybrid_layers_share_no_mapping() -> None:
    shared = {"name": "softmax"}
    first, second = hybrid({"default": shared, "every": 9, "name": "moh"}, 2)
    first["qk_norm"] = True
    assert second == {"name": "softmax"} == shared


@pytest.mark.parametrize(
    ("plan", "layers", "message"),
    [
        ("softmax*0", None, r"plan: the count of 'softmax\*0': must be a whole number from 1"),
        ("softmax*two", None, "must be a whole number from 1, got 'two'"),
        ("softmax*", None, "must be a whole number from 1, got ''"),
        ("softmax,,moh", None, "has a part without a name; write name or name"),
        ("", None, "has a part without a name"),
        ([], None, "plan: has no layers; write for example"),
        ([3], None, "plan: 3 is neither a name nor a mapping with 'name'"),
        ([{"topk": 2}], None, "is neither a name nor a mapping with 'name'"),
        ("softmax*3", 4, "plan: gives 3 layers, but layers=4"),
        ({"default": "moh", "every": 3, "name": "softmax"}, None, "how many layers; pass layers="),
        ({"default": "moh", "every": 0, "name": "softmax"}, 3, "every: must be a whole number"),
        ({"default": "moh", "every": True, "name": "softmax"}, 3, "every: must be a whole number"),
        ({"default": "moh", "every": 3}, 3, "plan: 'every' needs 'name' too"),
        ({"name": "moh", "every": 3}, 3, "plan: 'every' needs 'default' too"),
        ({"default": "moh", "every": 3, "name": "moh", "topk": 1}, 3, "unknown entry 'topk'"),
        ({"default": "moh", "every": 3, "name": "moh", "layers": 5}, 3, "gives 5 layers, but"),
    ],
)
def test_hybrid_names_what_is_wrong(plan, layers: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        hybrid(plan, layers)
    assert "\n" not in str(caught.value)


def test_hybrid_names_the_nearest_mixer() -> None:
    with pytest.raises(UserError, match="unknown mixer 'sofmax'; did you mean softmax"):
        hybrid("sofmax*2")


def test_build_layers_gives_shared_options_to_those_that_have_them() -> None:
    plan = [
        "spectral",
        {"name": "softmax", "qk_norm": False},
        "softmax",
        {"name": "moh", "num_heads": 6},
    ]
    layers = build_layers(plan, 12, 4, size=7, qk_norm=True)
    assert [layer.name for layer in layers] == ["spectral", "softmax", "softmax", "moh"]
    assert isinstance(layers[1].q_norm, torch.nn.Identity)
    assert isinstance(layers[2].q_norm, torch.nn.LayerNorm)
    assert layers[3].sizes[0] == 6
    x = torch.randn(2, 7, 12)
    for layer in layers:
        x = x + layer(x).y
    assert x.shape == (2, 7, 12)


def test_build_layers_share_no_parameters() -> None:
    layers = build_layers({"default": "linear", "every": 2, "name": "softmax"}, 8, 2, layers=4)
    assert [layer.name for layer in layers] == ["linear", "softmax"] * 2
    each = sum(len(list(layer.parameters())) for layer in layers)
    assert len({id(weight) for weight in layers.parameters()}) == each


@pytest.mark.parametrize(
    ("plan", "shared", "message"),
    [
        ("softmax*2", {"topk": 3}, r"topk: no mixer of the plan has this option \(softmax\)"),
        (["softmax", {"name": "moh", "topk": 3}], {}, r"layer 2 \(moh\): moh: unknown option"),
        ("softmax,moh", {"shared_heads": 9}, r"layer 2 \(moh\): shared_heads"),
    ],
)
def test_build_layers_names_layer_and_option(plan, shared: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_layers(plan, 8, 4, **shared)
    assert "\n" not in str(caught.value)
