"""Pixel-focused aggregated attention."""

from comparison import Reference
from token_mixer import compare

from manyhead_core.attention.mixers.aggregated import AggregatedAttention


def replay(reference: Reference) -> None:
    header = reference.config
    grid = (header["height"], header["width"])
    mixer = AggregatedAttention(
        header["dim"],
        header["num_heads"],
        size=grid,
        window=header.get("window", 3),
        sr_ratio=header.get("sr_ratio", 8),
        pool_size=header.get("pool_hw"),
        pretrain_size=header.get("pretrain_hw"),
        qkv_bias=header.get("qkv_bias", True),
        cpb_hidden=header.get("cpb_hidden", 512),
    )
    compare(reference, mixer, grid)


MECHANISMS = {"aggregated": replay}
