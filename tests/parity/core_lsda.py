"""The whole block of long and short distance attention."""

from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention.mixers.lsda import LongShortBlock


def replay(reference: Reference) -> None:
    header = reference.config
    block = LongShortBlock(
        header["dim"],
        header["num_heads"],
        mlp_ratio=header.get("mlp_ratio", 4),
        norm_eps=header.get("ln_eps", 1e-5),
        group_size=header["group_size"],
        mode=header["mode"],
        interval=header["interval"],
        pad_type=header["pad_type"],
        # The published block has no lower limit.
        pos_dim=header["dim"] // 4 // 4,
        qkv_bias=header.get("qkv_bias", True),
    )
    block.load_state_dict(reference.group("weights"))
    block.eval()
    inputs = reference.group("input")
    y = block(inputs["x"], grid=(header["height"], header["width"]))
    reference.output("y", y.detach())
    if "target" in inputs:
        compare_loss(reference, block, (y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


MECHANISMS = {"lsda": replay}
