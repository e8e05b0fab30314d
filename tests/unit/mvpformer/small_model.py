"""A small model whose attention is far from uniform, and noise to feed it."""

from __future__ import annotations

import torch

from manyhead.mvpformer import MVPFormer, MVPFormerConfig

SMALL = {
    "segment_samples": 64,
    "dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_key_heads": 2,
    "hidden_dim": 40,
    "max_segments": 16,
    "max_channels": 8,
    "window": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def build(seed: int = 0, **changes: object) -> MVPFormer:
    """A small model whose attention is far from uniform."""
    torch.manual_seed(seed)
    net = MVPFormer(MVPFormerConfig(**(SMALL | changes)))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


def signal(*shape: int, seed: int = 1) -> torch.Tensor:
    return 50 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
