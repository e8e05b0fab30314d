"""Every network by name: one calling convention, segments encoded one by one."""

import pytest
import torch

from manyhead.mvpformer.model import MVPFormerConfig
from manyhead.mvpformer.networks import NETWORKS, build_network
from manyhead_core.errors import ConfigError, DataError, UserError

BASELINES = sorted(NETWORKS.keys() - {"mvpformer"})


def small(**changes: object) -> MVPFormerConfig:
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "num_key_heads": 1, "hidden_dim": 16}
    return MVPFormerConfig(**sizes | {"segment_samples": 128, "num_classes": 3} | changes)


def signal(batch: int = 2, samples: int = 128, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 40 * torch.randn(batch, 4, 3, samples, generator=generator)


@pytest.fixture(params=sorted(NETWORKS))
def net(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    built = build_network(request.param, small())
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built.eval()


def test_tokens_and_signal_give_the_same(net: torch.nn.Module) -> None:
    x = signal()
    from_signal, from_tokens = net(x), net(tokens=net.encode(x))
    assert from_signal.logits.shape == (2, 3)
    assert from_signal.hidden.shape[:3] == (2, 4, 3)
    assert from_signal.prediction is None
    torch.testing.assert_close(from_tokens.logits, from_signal.logits)


def test_a_segment_is_encoded_by_itself(net: torch.nn.Module) -> None:
    x = signal()
    each = [net.encode(x[:, t : t + 1, c : c + 1]) for t in range(4) for c in range(3)]
    together = torch.cat(each, 2).unflatten(2, (4, 3)).squeeze(1)
    torch.testing.assert_close(together, net.encode(x))


def test_a_window_does_not_depend_on_its_batch(net: torch.nn.Module) -> None:
    x = signal(batch=3)
    torch.testing.assert_close(net(x).logits[1:2], net(x[1:2]).logits)


def test_weights_with_threshold_load_again(net: torch.nn.Module) -> None:
    name = next(key for key in NETWORKS if NETWORKS[key].endswith(f":{type(net).__name__}"))
    net.threshold.fill_(0.3)
    other = build_network(name, small())
    other.load_state_dict(net.state_dict())
    assert other.threshold.item() == pytest.approx(0.3)
    torch.testing.assert_close(other.eval()(signal()).logits, net(signal()).logits)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_gradients_reach_all_weights_in_batches_of_one(name: str) -> None:
    net = build_network(name, small()).train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        logits = net(signal(1, seed=step)).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([1])).backward()
        optimiser.step()
    found = {key: p.grad for key, p in net.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in found.values())
    assert all(grad.abs().sum() > 0 for grad in found.values())


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_do_not_forecast(name: str) -> None:
    with pytest.raises(ConfigError, match=r"target: forecast needs network mvpformer"):
        build_network(name, small(target="forecast", horizon=4))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_name_a_segment_of_the_wrong_length(name: str) -> None:
    net = build_network(name, small())
    with pytest.raises(DataError, match=r"\(2, 4, 3, 100\).* 128 samples"):
        net(signal(samples=100))
    with pytest.raises(ConfigError, match="exactly one"):
        net()


def test_an_unknown_name_has_a_suggestion() -> None:
    with pytest.raises(
        UserError, match=r"unknown network 'band_enrgy'; did you mean band_energy\?"
    ):
        build_network("band_enrgy", small())
