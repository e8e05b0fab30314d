"""What the replays of mixers on a grid share."""

from comparison import Reference
from torch import Tensor

from manyhead_core.attention.mixer import TokenMixer


def compare(reference: Reference, mixer: TokenMixer, grid: tuple[int, int]) -> None:
    """Output, and where the file has a target, loss and gradients."""
    mixer.load_state_dict(reference.group("weights"))
    mixer.eval()
    inputs = reference.group("input")
    y = mixer(inputs["x"], grid=grid).y
    reference.output("y", y.detach())
    if "target" in inputs:
        compare_loss(reference, mixer, (y - inputs["target"]).square().mean())
    reference.assert_complete("output", "grad")


def compare_loss(reference: Reference, mixer: TokenMixer, loss: Tensor) -> None:
    """The loss and the gradients of the named weights."""
    reference.output("loss", loss.detach())
    loss.backward()
    parameters = dict(mixer.named_parameters())
    for name in reference.group("grad"):
        reference.gradient(name, parameters[name].grad)
