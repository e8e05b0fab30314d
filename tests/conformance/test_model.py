"""What every model of the suite promises, whatever it does."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import WITHOUT_GRADIENT
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.app import App
from manyhead_core.errors import ConfigError, WeightsError
from manyhead_core.hub.export import export_onnx
from manyhead_core.hub.pretrained import build_config
from manyhead_core.training.plain import to_plain

GOLDEN = Path(__file__).parent / "golden"
Build = Callable[..., Any]


def loss_of(logits: Tensor, label: Tensor) -> Tensor:
    if logits.dim() == 1:
        return F.binary_cross_entropy_with_logits(logits, label.float())
    return F.cross_entropy(logits, label)


def randomised(net: nn.Module) -> nn.Module:
    """Weights away from their start, where a zero bias could hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return net


@pytest.mark.parametrize("batch", [1, 2])
def test_forward_gives_named_finite_logits(build: Build, batch: int) -> None:
    net = build().eval()
    logits = net.named_logits(net.example_inputs(batch))
    assert logits.shape[0] == batch
    assert torch.isfinite(logits).all()
    assert logits.dtype == torch.float32


def test_batch_order_does_not_matter(build: Build) -> None:
    net = randomised(build()).eval()
    inputs = net.example_inputs(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = net.named_logits({name: tensor[order] for name, tensor in inputs.items()})
    torch.testing.assert_close(shuffled, net.named_logits(inputs)[order], rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_the_others(build: Build) -> None:
    net = randomised(build()).eval()
    inputs = net.example_inputs(6)
    alone = net.named_logits({name: tensor[2:3] for name, tensor in inputs.items()})
    torch.testing.assert_close(alone, net.named_logits(inputs)[2:3], rtol=1e-5, atol=1e-6)


def test_evaluation_is_deterministic(build: Build) -> None:
    net = build().eval()
    inputs = net.example_inputs(3)
    assert torch.equal(net.named_logits(inputs), net.named_logits(inputs))


def test_gradients_reach_every_parameter(app: App, build: Build) -> None:
    net = build().train()
    reached: set[str] = set()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        inputs = net.example_inputs(16, seed=step)
        loss_of(net.named_logits(inputs), torch.arange(16) % 2).backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), name
                reached |= {name} if parameter.grad.any() else set()
        optimiser.step()
    expected = {name for name, _ in net.named_parameters()} - WITHOUT_GRADIENT[app.name].keys()
    assert reached >= expected, f"no gradient: {sorted(expected - reached)}"


def test_config_survives_json(app: App, build: Build) -> None:
    config = build().config
    plain = json.loads(json.dumps(to_plain(config)))
    assert build_config(app.load("config"), plain) == config
    assert dataclasses.fields(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = 1


def test_weights_folder_gives_the_same_model(build: Build, tmp_path: Path) -> None:
    net = randomised(build()).eval()
    net.save_pretrained(tmp_path / "weights")
    again = type(net).from_pretrained(tmp_path / "weights")
    assert again.config == net.config
    assert not again.training
    inputs = net.example_inputs(4)
    assert torch.equal(again.named_logits(inputs), net.named_logits(inputs))
    assert {file.name for file in (tmp_path / "weights").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def test_weights_of_another_app_are_refused(build: Build, tmp_path: Path) -> None:
    net = build()
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"app": "other"}))
    with pytest.raises(WeightsError, match="holds weights of other"):
        type(net).from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(WeightsError, match="format 99"):
        type(net).from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no field nothing"):
        type(net).from_pretrained(tmp_path, nothing=1)
    with pytest.raises(WeightsError, match=r"no folder \./nowhere"):
        type(net).from_pretrained("./nowhere")


def test_state_dict_keys_are_those_of_the_golden_file(app: App, build: Build) -> None:
    # Users' checkpoints depend on these names: changing one needs a migration and a line in the
    # changelog. Write the file anew with the shapes printed on failure.
    found = {name: list(tensor.shape) for name, tensor in build().state_dict().items()}
    golden = json.loads((GOLDEN / f"{app.name}.json").read_text())
    assert found == golden, json.dumps(found)


def test_head_can_be_reset(build: Build) -> None:
    net = build()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(5)
    net.reset_head()
    changed = {name for name, t in net.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert len(changed) < len(before) / 2


def test_bfloat16_autocast_is_finite(build: Build) -> None:
    net = build().train()
    inputs = net.example_inputs(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net.named_logits(inputs)
    assert logits.dtype == torch.float32
    loss_of(logits, torch.arange(8) % 2).backward()
    grads = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_model_gives_the_same_numbers(build: Build) -> None:
    net = randomised(build()).eval()
    inputs = net.example_inputs(4)
    plain = net.named_logits(inputs)
    keys = list(net.state_dict())
    net.compile(fullgraph=True)
    torch.testing.assert_close(net.named_logits(inputs), plain, rtol=1e-4, atol=1e-5)
    assert list(net.state_dict()) == keys
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_file_gives_the_same_numbers(build: Build, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    net = randomised(build()).eval()
    difference = export_onnx(net, tmp_path / "net.onnx", opset=18)
    assert difference <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_four_samples_are_learnt_by_heart(build: Build) -> None:
    net = build().train()
    inputs, label = net.example_inputs(4), torch.tensor([0, 1, 1, 0])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(50):
        optimiser.zero_grad()
        loss = loss_of(net.named_logits(inputs), label)
        loss.backward()
        optimiser.step()
    assert loss < 0.05


def test_three_training_steps_repeat_to_the_last_bit(build: Build) -> None:
    def losses() -> list[float]:
        net, found = build().train(), []
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for step in range(3):
            optimiser.zero_grad()
            loss = loss_of(net.named_logits(net.example_inputs(8, seed=step)), torch.arange(8) % 2)
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return found

    assert losses() == losses()
