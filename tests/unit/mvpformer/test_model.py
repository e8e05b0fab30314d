"""The network: shapes, causality, what a token sees, heads, adapters."""

from __future__ import annotations

import pytest
import torch
from small_model import build, signal

from manyhead.mvpformer import MVPFormer, MVPFormerConfig
from manyhead_core.errors import ConfigError


def test_published_sizes_have_the_published_numbers_of_parameters() -> None:
    # The published counts hold an unused norm in every layer and an unused embedding.
    for config, published in (
        (MVPFormerConfig.small(target="next_token"), 74_184_498),
        (MVPFormerConfig.medium(target="next_token"), 1_243_336_754),
        (MVPFormerConfig.small(), 73_596_210),
        (MVPFormerConfig.medium(), 1_239_146_546),
    ):
        with torch.device("meta"):
            net = MVPFormer(config)
        unused = config.num_layers * config.dim + 3 * config.segment_samples
        assert sum(p.numel() for p in net.parameters()) + unused == published


@pytest.mark.parametrize(("size", "published"), [("small", 247_296), ("medium", 1_380_352)])
def test_adapters_have_the_published_numbers_of_parameters(size: str, published: int) -> None:
    with torch.device("meta"):
        net = MVPFormer(getattr(MVPFormerConfig, size)(lora_rank=8))
    learning = [p for n, p in net.named_parameters() if "lora_" in n or n.startswith("head.")]
    assert sum(p.numel() for p in learning) == published


def test_no_token_sees_later_segments_but_all_channels_of_its_own() -> None:
    net = build(target="next_token")
    x = signal(1, 6, 3, 64)
    changed = x.clone()
    changed[:, 4, 0] += 30 * signal(1, 64, seed=2)[0]
    with torch.no_grad():
        gap = (net(x).hidden - net(changed).hidden).abs().amax((0, 3))
    assert gap[:4].max() == 0
    assert gap[4:].min() > 1e-6


def test_tokens_stand_for_the_signal() -> None:
    net = build()
    x = signal(2, 5, 3, 64)
    assert torch.equal(net(tokens=net.encode(x)).logits, net(x).logits)
    with pytest.raises(ConfigError, match="pass signal"):
        net()


def test_encoding_looks_at_one_segment_at_a_time() -> None:
    net = build(amplitude="bands")
    x = signal(1, 4, 3, 64)
    one = net.encode(x[:, 2:3, 1:2])
    assert torch.allclose(one, net.encode(x)[:, 2:3, 1:2], atol=1e-6)


def test_order_of_channels_matters() -> None:
    net = build()
    x = signal(1, 5, 4, 64)
    assert not torch.allclose(net(x).logits, net(x[:, :, [2, 0, 3, 1]]).logits, atol=1e-4)
    # Reversing keeps all distances.
    assert torch.allclose(net(x).logits, net(x.flip(2)).logits, atol=1e-5)


def test_more_channels_or_segments_than_rows_are_refused() -> None:
    net = build()
    with pytest.raises(ConfigError, match="channels: 9 are more than the 8 rows"):
        net(signal(1, 2, 9, 64))
    with pytest.raises(ConfigError, match="steps: 17 are more than the 16 rows"):
        net(signal(1, 17, 2, 64))


def test_amplitude_is_lost_without_the_side_input() -> None:
    x = signal(1, 3, 2, 64)
    plain, with_input = build(), build(amplitude="rms")
    assert torch.allclose(plain(x).logits, plain(4 * x).logits, atol=1e-4)
    assert not torch.allclose(with_input(x).logits, with_input(4 * x).logits, atol=1e-3)


def test_a_flat_channel_gives_zero_tokens_and_finite_logits() -> None:
    net = build()
    x = signal(1, 3, 2, 64)
    x[:, :, 1] = 0
    assert net.encode(x)[:, :, 1].abs().max() == 0
    assert net(x).logits.isfinite().all()


def test_forecast_gives_samples_of_every_channel() -> None:
    net = build(target="forecast", horizon=10)
    found = net(signal(2, 3, 4, 64))
    assert found.prediction.shape == (2, 4, 10)
    assert found.logits is None
    with pytest.raises(ConfigError, match="horizon"):
        MVPFormerConfig(target="forecast")


def test_reset_head_changes_the_number_of_classes() -> None:
    net = build()
    net.threshold.fill_(0.9)
    net.reset_head(5)
    assert net(signal(2, 3, 2, 64)).logits.shape == (2, 5)
    assert net.config.num_classes == 5
    assert float(net.threshold) == 0.5


@pytest.mark.parametrize("field", ["dim", "max_channels", "num_layers"])
def test_sizes_are_checked(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}: must be at least 1, got 0"):
        MVPFormerConfig(**{field: 0})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="too few for a wavelet"):
        MVPFormerConfig(segment_samples=10)
