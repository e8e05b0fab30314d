from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from manyhead.autoint import AutoInt, AutoIntConfig
from manyhead.autoint.checkpoint import (
    from_official,
    import_official,
    infer_config,
    pieces,
    to_official,
)
from manyhead_core.errors import ConfigError, WeightsError

SHAPES = [
    {},
    {"residual": False},
    {"tower": (7,)},
    {"tower": (5, 3), "residual": False, "widths": (4,)},
    {"widths": (4, 8, 8, 4), "num_heads": 4},
]


def network(**options: object) -> AutoInt:
    torch.manual_seed(0)
    sizes = {"num_features": 11, "num_fields": 3, "dim": 4, "widths": (8, 4)}
    net = AutoInt(AutoIntConfig(**sizes | options))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net


def official(net: AutoInt) -> dict[str, Tensor]:
    return to_official(net.state_dict(), net.config)


@pytest.mark.parametrize("options", SHAPES)
def test_there_and_back_is_equal_to_the_last_bit(options: dict) -> None:
    net = network(**options)
    variables = official(net)
    config = infer_config(variables, net.config.num_heads)
    assert config == net.config
    state = from_official(variables, config)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


def test_names_follow_the_order_of_creation() -> None:
    names = {piece.ours: piece.official for piece in pieces(network(tower=(5, 3)).config)}
    assert names["tower.hidden.0.weight"] == "Variable"
    assert names["tower.hidden.1.bias"] == "Variable_3"
    assert names["layers.0.norm.bias"] == "Variable_4", "beta comes before gamma"
    assert names["layers.1.norm.weight"] == "Variable_7"
    assert {
        p.official for p in pieces(network().config) if p.ours == "layers.1.project.weight"
    } == {f"dense_{number}/kernel" for number in range(4, 8)}


def test_import_writes_a_weights_folder_and_leaves_out_the_optimiser(tmp_path: Path) -> None:
    net = network(tower=(5,))
    arrays = {name: tensor.numpy() for name, tensor in official(net).items()}
    arrays |= {"dense/kernel/Adam": np.ones(3), "beta1_power": np.array(0.9)}
    np.savez(tmp_path / "official.npz", **arrays)
    import_official(tmp_path / "official.npz", tmp_path / "weights")
    again = AutoInt.from_pretrained(tmp_path / "weights")
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(WeightsError, match="exists; choose another folder"):
        import_official(tmp_path / "official.npz", tmp_path / "weights")


def test_mistakes_are_named(tmp_path: Path) -> None:
    variables = official(network())
    config = network().config
    surplus = variables | {"strange": torch.ones(1)}
    with pytest.raises(WeightsError, match="variables unknown: strange"):
        from_official(surplus, config)
    missing = {name: t for name, t in variables.items() if name != "dense_2/bias"}
    with pytest.raises(WeightsError, match="variables missing: dense_2/bias"):
        from_official(missing, config)
    with pytest.raises(WeightsError, match="is this an AutoInt checkpoint"):
        infer_config({"a": torch.ones(1)})
    with pytest.raises(ConfigError, match="norm: the official network has 'layer' only"):
        pieces(network(norm="none").config)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    for path, message in [
        (tmp_path / "nothing.npz", "no file"),
        (tmp_path / "objects.npz", "holds no plain arrays"),
        (tmp_path, "no file"),
    ]:
        with pytest.raises(WeightsError, match=message):
            import_official(path, tmp_path / "out")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"neither \.npz nor \.safetensors"):
        import_official(tmp_path / "model.ckpt", tmp_path / "out")
