"""Block-local attention with halos."""

from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention.mixers.halo import HaloAttention


def replay(reference: Reference) -> None:
    header = reference.config
    mixer = HaloAttention(
        header["dim"],
        header["num_heads"],
        head_dim=header.get("dim_head"),
        block_size=header["block_size"],
        halo_size=header["halo_size"],
        scale_pos=header.get("scale_pos", False),
        mask_padding=header.get("mask_padding", False),
        stride=header.get("stride", 1),
    )
    mixer.load_state_dict(reference.group("weights"))
    mixer.eval()
    inputs = reference.group("input")
    channels = -1 if header.get("layout") == "NHWC" else 1
    tokens = inputs["x"].movedim(channels, -1).flatten(1, 2)
    grid = (header["height"], header["width"])
    out = mixer(tokens, grid=grid).y
    y = out.unflatten(1, tuple(length // mixer.stride for length in grid)).movedim(-1, channels)
    reference.output("y", y.detach())
    if "target" in inputs:
        compare_loss(reference, mixer, (y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


MECHANISMS = {"halo": replay}
