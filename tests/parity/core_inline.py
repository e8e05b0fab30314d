"""Injective linear attention."""

from comparison import Reference
from token_mixer import compare

from manyhead_core.attention.mixers.inline import InlineAttention


def replay(reference: Reference) -> None:
    header = reference.config
    weights = reference.group("weights")
    mixer = InlineAttention(
        header["dim"],
        header["num_heads"],
        qkv_bias=header.get("qkv_bias", True),
        fused_qkv="qkv.weight" in weights,
        local="2d" if header.get("local_residual", True) else "none",
    )
    compare(reference, mixer, (header["height"], header["width"]))


MECHANISMS = {"inline": replay}
