"""Gaussian adaptive attention along any axis."""

from comparison import Reference
from token_mixer import compare_loss
from torch import Tensor

from manyhead_core.attention.mixers.gaam import GaussianAttention


def replay(reference: Reference) -> None:
    header = reference.config
    inputs = reference.group("input")
    x, axis = inputs["x"], header["norm_axis"]
    length = x.shape[axis]
    # The header's eps is left out: the reference does not use it.
    mixer = GaussianAttention(
        length,
        header["num_heads"],
        num_gaussians=header["num_gaussians"],
        padding_value=header.get("padding_value"),
    )
    mixer.load_state_dict(reference.group("weights"))
    mixer.eval()
    lines = x.movedim(axis, -1)

    def back(found: Tensor) -> Tensor:
        return found.reshape(lines.shape).movedim(-1, axis)

    tokens = lines.reshape(1, -1, length)
    y = back(mixer(tokens).y)
    reference.output("y", y.detach())
    if "weights" in reference.group("output"):
        reference.output("weights", back(mixer.weights(tokens)).detach())
    if "target" in inputs:
        compare_loss(reference, mixer, (y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


MECHANISMS = {"gaam": replay}
