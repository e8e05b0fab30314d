"""Subspace attention."""

from comparison import Reference
from token_mixer import compare_loss

from manyhead_core.attention.mixers.ulsam import SubspaceAttention


def replay(reference: Reference) -> None:
    header = reference.config
    mixer = SubspaceAttention(
        header["dim"], header["num_splits"], bn_momentum=header.get("bn_momentum", 0.9)
    )
    # A file of floats leaves out the norms' counters of batches, which no result depends on.
    counters = {k: v for k, v in mixer.state_dict().items() if k.endswith("num_batches_tracked")}
    mixer.load_state_dict(counters | reference.group("weights"))
    mixer.train(header.get("train", False))
    inputs = reference.group("input")
    channels = -1 if header.get("layout") == "NHWC" else 1
    tokens = inputs["x"].movedim(channels, -1).flatten(1, 2)
    grid = (header["height"], header["width"])
    y = mixer(tokens, grid=grid).y.unflatten(1, grid).movedim(-1, channels)
    reference.output("y", y.detach())
    if "target" in inputs:
        compare_loss(reference, mixer, (y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


MECHANISMS = {"ulsam": replay}
