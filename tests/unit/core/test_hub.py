import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import manyhead
from manyhead import registry
from manyhead.autoint import AutoInt, AutoIntConfig
from manyhead_core.cli.checkpoint import file_hash
from manyhead_core.errors import DataError, UserError, WeightsError
from manyhead_core.hub.artefact import Artefact
from manyhead_core.hub.export import export
from manyhead_core.hub.loading import calibration_of, load_weights
from manyhead_core.hub.locate import locate
from manyhead_core.hub.weights import list_weights, verify

APP = registry.get("autoint")
STATE = ({"format": 1, "list_slots": [3], "name": "Zürich"}, {"offsets": torch.arange(4)})


@pytest.fixture
def net() -> AutoInt:
    torch.manual_seed(0)
    made = AutoInt(AutoIntConfig(num_features=30, num_fields=4, widths=(8,), dim=4)).eval()
    made.preprocessor_state = STATE
    made.metrics = {"auroc": "0.7812"}
    return made


def test_folder_carries_preprocessor_and_metrics(net: AutoInt, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path)
    again = manyhead.load("autoint", tmp_path)
    meta, tensors = again.preprocessor_state
    assert meta == STATE[0]
    assert torch.equal(tensors["offsets"], torch.arange(4))
    assert again.metrics == net.metrics
    assert "| auroc | 0.7812 |" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 1


def test_config_fields_can_be_overridden_but_not_shapes(net: AutoInt, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path)
    assert AutoInt.from_pretrained(tmp_path, dropout=0.3).dropout.p == 0.3
    message = r"shape of embedding.table.weight is \(30, 4\), the config asks for \(31, 4\)"
    with pytest.raises(WeightsError, match=message):
        AutoInt.from_pretrained(tmp_path, num_features=31)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(net: AutoInt, tmp_path: Path, name: str) -> None:
    net.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\x00{")
    with pytest.raises(WeightsError, match=f"{name}: is "):
        AutoInt.from_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsError, match=f"holds no {name}"):
        AutoInt.from_pretrained(tmp_path)


def test_paths_are_told_from_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(tmp_path) == tmp_path
    for name in ("./weights/ctr", "../ctr", "ctr", "a/b/c", "/nowhere"):
        with pytest.raises(WeightsError, match="no folder"):
            locate(name)
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="is a file; pass the folder"):
        locate(tmp_path / "file")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="the hub did not give it"):
        locate("somebody/something", cache_dir=tmp_path)


def test_export_writes_a_folder_once(net: AutoInt, tmp_path: Path, capsys) -> None:
    net.save_pretrained(tmp_path / "one")
    export(APP, tmp_path / "one", tmp_path / "deep" / "two")
    assert "written" in capsys.readouterr().out
    inputs = net.example_inputs(5)
    again = AutoInt.from_pretrained(tmp_path / "deep" / "two")
    assert torch.equal(again.named_logits(inputs), net.named_logits(inputs))
    with pytest.raises(UserError, match="exists; choose another name"):
        export(APP, tmp_path / "one", tmp_path / "deep" / "two")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["two"]


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_lies_beside_its_preprocessor(net: AutoInt, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path / "weights")
    export(APP, tmp_path / "weights", tmp_path / "ctr.onnx")
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"ctr.onnx", "ctr.preprocessor.json", "ctr.preprocessor.safetensors"}
    session = onnxruntime.InferenceSession(tmp_path / "ctr.onnx")
    assert [i.name for i in session.get_inputs()] == list(net.example_inputs())
    inputs = net.example_inputs(11, seed=3)
    logits = session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]
    np.testing.assert_allclose(logits, net.named_logits(inputs).detach().numpy(), atol=1e-5)


def test_onnx_overwrites_no_file_beside_it(net: AutoInt, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path / "weights")
    (tmp_path / "ctr.preprocessor.json").write_text("precious")
    with pytest.raises(UserError, match=r"ctr\.preprocessor\.json, which goes beside ctr\.onnx"):
        export(APP, tmp_path / "weights", tmp_path / "ctr.onnx")
    assert (tmp_path / "ctr.preprocessor.json").read_text() == "precious"
    assert not (tmp_path / "ctr.onnx").exists()


def test_weights_exported_again_keep_metrics_and_calibration(net: AutoInt, tmp_path: Path) -> None:
    fitted = {"temperature": 2.0, "bias": 0.1}
    net.preprocessor_state = STATE[0] | {"calibration": fitted}, STATE[1]
    net.save_pretrained(tmp_path / "one")
    export(APP, tmp_path / "one", tmp_path / "two")
    again = AutoInt.from_pretrained(tmp_path / "two")
    assert again.metrics == {"auroc": "0.7812"}
    assert again.preprocessor_state[0]["calibration"] == fitted


def test_a_calibration_belongs_to_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    assert calibration_of(checkpoint) == {}
    content = {"temperature": 2.0, "bias": 0.1, "checkpoint_hash": file_hash(checkpoint)}
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    assert calibration_of(checkpoint) == {"calibration": {"temperature": 2.0, "bias": 0.1}}
    checkpoint.write_bytes(b"trained on")
    assert calibration_of(checkpoint) == {}
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(DataError, match="is damaged or not JSON"):
        calibration_of(checkpoint)


def test_foreign_checkpoints_are_refused_and_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return sys.exit, (1,)

    torch.save({"manyhead": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(WeightsError, match="is damaged or no checkpoint of fit"):
        load_weights(APP, tmp_path / "bomb.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint\n")
    with pytest.raises(WeightsError, match="is damaged or no checkpoint of fit"):
        load_weights(APP, tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="was not written by fit; convert it with import"):
        load_weights(APP, tmp_path / "other.ckpt")
    torch.save({"manyhead": {"app": "acmil"}}, tmp_path / "acmil.ckpt")
    with pytest.raises(WeightsError, match="belongs to the app acmil, not to autoint"):
        load_weights(APP, tmp_path / "acmil.ckpt")
    with pytest.raises(WeightsError, match="no file"):
        load_weights(APP, tmp_path / "none.ckpt")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"has no checkpoints/best\.ckpt yet"):
        load_weights(APP, tmp_path / "run")


def test_weights_without_preprocessor_cannot_take_raw_data(net: AutoInt, tmp_path: Path) -> None:
    net.preprocessor_state = None
    net.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="carries no preprocessor"):
        load_weights(APP, tmp_path).need_preprocessor()


def test_catalogue_and_verify(net: AutoInt, tmp_path: Path, capsys) -> None:
    list_weights(registry.apps())
    assert "autoint: the authors published code without trained weights" in capsys.readouterr().out
    net.save_pretrained(tmp_path)
    verify(registry.apps(), tmp_path)
    shown = capsys.readouterr().out
    assert "not in the catalogue" in shown
    assert "model card" in shown
    verify(registry.apps(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="no file or folder"):
        verify(registry.apps(), tmp_path / "nothing")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"holds no readable config\.json"):
        verify(registry.apps(), tmp_path)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tensor = torch.ones(3)
    Artefact("autoint", {}, {"a": tensor, "b": tensor[:2]}).write(tmp_path)
    assert Artefact.read(tmp_path, "autoint").weights["b"].tolist() == [1, 1]
