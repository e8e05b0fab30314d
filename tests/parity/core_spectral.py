"""Spectral gating."""

from comparison import Reference
from token_mixer import compare

from manyhead_core.attention.mixers.spectral import SpectralGate


def replay(reference: Reference) -> None:
    header = reference.config
    grid = (header["height"], header["width"])
    compare(reference, SpectralGate(header["dim"], size=grid), grid)


MECHANISMS = {"spectral": replay}
