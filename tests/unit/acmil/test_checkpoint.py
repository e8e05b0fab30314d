"""Published checkpoints: both directions, and nothing in them is executed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from manyhead import registry
from manyhead.acmil.baselines.clam import CLAM
from manyhead.acmil.checkpoint import (
    TABLES,
    canonical,
    from_official,
    import_official,
    load_official,
    recognise,
    to_official,
)
from manyhead.acmil.model import ACMIL, ACMILConfig
from manyhead.acmil.networks import build_network
from manyhead_core.errors import ConfigError, WeightsError
from manyhead_core.hub.loading import load_weights

SMALL = {"feature_dim": 12, "dim": 16, "hidden_dim": 4, "num_classes": 3, "num_branches": 2}
CASES = [
    ("acmil_gated", "acmil", {"num_residual": 1}),
    ("acmil_multihead", "acmil", {"attention": "multihead"}),
    ("abmil", "abmil", {"num_branches": 5}),
    ("mha", "mha", {"attention": "multihead", "num_branches": 5}),
    ("clam_sb", "clam_sb", {}),
    ("clam_mb", "clam_mb", {}),
    ("dsmil", "dsmil", {}),
    ("transmil", "transmil", {}),
]


def official_of(table: str, network: str, changes: dict) -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(0)
    net = build_network(network, ACMILConfig(**SMALL | changes))
    return net, to_official(net.state_dict(), table)


@pytest.mark.parametrize(("table", "network", "changes"), CASES)
def test_round_trip_is_exact(table: str, network: str, changes: dict) -> None:
    net, official = official_of(table, network, changes)
    found = recognise(official)
    assert (found.table, found.network) == (table, network)
    assert found.config.feature_dim == 12
    state = from_official(official, found)
    assert state.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(state[name], tensor), name
    found.build().load_state_dict(state)


def test_every_network_has_a_case() -> None:
    assert {case[0] for case in CASES} == TABLES.keys()


class Options:
    """Stands for a class of the authors' project."""

    def __reduce__(self) -> tuple:
        return print, ("executed",)


def test_objects_in_a_checkpoint_are_not_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, official = official_of(*CASES[0])
    wrapped = {name.replace("attention.", "attention.module."): t for name, t in official.items()}
    content = {"model": wrapped, "config": Options(), "epoch": 3, "args": SimpleNamespace(lr=1)}
    torch.save(content, tmp_path / "best.pth")
    import_official(tmp_path / "best.pth", tmp_path / "weights")
    assert "executed" not in capsys.readouterr().out
    again = ACMIL.from_pretrained(tmp_path / "weights")
    assert torch.equal(again.slide_head.weight, official["Slide_classifier.fc.weight"])
    with pytest.raises(WeightsError, match="exists"):
        import_official(tmp_path / "best.pth", tmp_path / "weights")


def test_clam_of_a_data_parallel_wrapper_without_dropout(tmp_path: Path) -> None:
    _, official = official_of("clam_sb", "clam_sb", {"hidden_dim": 6})
    odd = {"instance_loss_fn.labels": torch.zeros(3)}
    for name, tensor in official.items():
        name = name.replace("attention_net.3", "attention_net.2")
        odd[name.replace("attention_net.", "attention_net.module.")] = tensor
    torch.save(odd, tmp_path / "s_0_checkpoint.pt")
    net = load_official(tmp_path / "s_0_checkpoint.pt")
    assert isinstance(net, CLAM)
    assert net.content.out_features == 6
    assert canonical(official).keys() == official.keys()


def test_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04nothing")
    for name, words in (("other.pt", "neither ACMIL"), ("cut.pt", "damaged"), ("no.pt", "no file")):
        with pytest.raises(WeightsError, match=words):
            import_official(tmp_path / name, tmp_path / "out")
    _, official = official_of(*CASES[0])
    torch.save(official | {"surplus.weight": torch.zeros(2)}, tmp_path / "more.pt")
    with pytest.raises(WeightsError, match=r"surplus\.weight"):
        import_official(tmp_path / "more.pt", tmp_path / "out")


def test_an_imported_baseline_scores_as_the_original(tmp_path: Path) -> None:
    net, official = official_of("clam_mb", "clam_mb", {})
    torch.save(official, tmp_path / "clam.pt")
    names = "normal,low,high"
    with pytest.raises(WeightsError, match=r"end in \.ckpt"):
        import_official(tmp_path / "clam.pt", tmp_path / "folder", names)
    with pytest.raises(ConfigError, match="2 names, but the checkpoint has 3 classes"):
        import_official(tmp_path / "clam.pt", tmp_path / "clam.ckpt", "a,b")
    import_official(tmp_path / "clam.pt", tmp_path / "clam.ckpt", names)
    loaded = load_weights(registry.get("acmil"), tmp_path / "clam.ckpt")
    assert loaded.need_preprocessor()[0]["class_names"] == names.split(",")
    features = torch.randn(5, 12)
    assert torch.equal(loaded.net(features).logits, net.eval()(features).logits)


def test_imported_weights_know_their_features_and_classes(tmp_path: Path) -> None:
    _, official = official_of(*CASES[0])
    torch.save(official, tmp_path / "a.pth")
    import_official(tmp_path / "a.pth", tmp_path / "weights")
    loaded = load_weights(registry.get("acmil"), tmp_path / "weights")
    assert loaded.need_preprocessor()[0]["class_names"] == ["0", "1", "2"]
