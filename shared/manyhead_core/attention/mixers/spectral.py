"""`spectral`: gating in the frequency domain, Patro et al., arXiv 2304.06446."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead_core.attention.maps import MapRequest
from manyhead_core.attention.masks import Mask
from manyhead_core.attention.mixer import Capabilities, MixerOutput, TokenMixer
from manyhead_core.errors import ConfigError

Resample = Literal["bilinear", "kernel"]


class SpectralGate(TokenMixer):
    """A learned factor for each frequency and channel: a circular convolution as large as the map.

    `y = irfft(rfft(x) * w)`, orthonormal, always in float32 or wider. A map of another size than
    `size` is filtered with weights resampled on the fly; `resize` does it once and for all.

    Args:
        dim: Model width.
        num_heads: Not used: channels are filtered one by one. Here so that a config can name any
            mixer.
        size: Height and width of the map in tokens, or the length of a sequence.
        resample: How weights are carried to another size: `bilinear` interpolates them over the
            half spectrum, so that a frequency keeps its share of the highest one; `kernel` keeps
            the spatial kernel, cut or filled with zeros far from its centre.
    """

    name = "spectral"
    capabilities = Capabilities(patterns=frozenset({"NS"}), layouts=frozenset({"1d", "2d"}))

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,  # noqa: ARG002
        *,
        size: int | Sequence[int],
        resample: Resample = "bilinear",
    ) -> None:
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if len(self.size) > 2 or not self.size or min(self.size) < 1:
            raise ConfigError(f"size: {size} is neither a length nor a height and width")
        if resample not in ("bilinear", "kernel"):
            raise ConfigError(f"resample: {resample!r} is unknown; use bilinear or kernel")
        self.resample: Resample = resample
        self.complex_weight = nn.Parameter(torch.randn(*half(self.size), dim, 2) * 0.02)

    def mix(
        self,
        x: Tensor,
        context: Tensor | None,  # noqa: ARG002
        *,
        mask: Mask | None,  # noqa: ARG002
        grid: tuple[int, int] | None,
        memory: Any,  # noqa: ARG002
        maps: MapRequest | None,  # noqa: ARG002
    ) -> MixerOutput:
        """The filter."""
        size = (x.shape[1],) if len(self.size) == 1 else grid
        if size is None:
            raise ConfigError("spectral: works on a grid of tokens; pass grid=(height, width)")
        axes = (1,) if len(size) == 1 else (1, 2)
        precise = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            weight = resampled(self.complex_weight.to(precise), self.size, size, self.resample)
            spectrum = torch.fft.rfftn(x.to(precise).unflatten(1, size), dim=axes, norm="ortho")
            spectrum = spectrum * torch.view_as_complex(weight.contiguous())
            y = torch.fft.irfftn(spectrum, s=size, dim=axes, norm="ortho")
        return MixerOutput(y.flatten(1, len(size)).to(x.dtype), {})

    @torch.no_grad()
    def resize(self, size: int | Sequence[int]) -> None:
        """Carry the weights to another map size; optimisers have to be built afterwards.

        Args:
            size: As in the constructor, with as many axes as before.

        Raises:
            ConfigError: The number of axes differs.
        """
        new = (size,) if isinstance(size, int) else tuple(size)
        if len(new) != len(self.size):
            raise ConfigError(f"size: {new} does not have the axes of {self.size}")
        weight = resampled(self.complex_weight, self.size, new, self.resample)
        self.complex_weight = nn.Parameter(weight.clone(), self.complex_weight.requires_grad)
        self.size = new

    def extra_repr(self) -> str:
        """Settings for `print(model)`."""
        return f"size={self.size}, resample={self.resample!r}"


def half(size: tuple[int, ...]) -> tuple[int, ...]:
    """Size of the half spectrum of a real signal: the last axis loses its negative frequencies."""
    return (*size[:-1], size[-1] // 2 + 1)


def resampled(weight: Tensor, old: tuple[int, ...], new: tuple[int, ...], how: Resample) -> Tensor:
    """Weights for another map size.

    Args:
        weight: `(*half(old), dim, 2)`, real and imaginary part last.
        old: Size of the map it is for.
        new: Size wanted.
        how: As `resample` of `SpectralGate`.

    Returns:
        `(*half(new), dim, 2)`.
    """
    if old == new:
        return weight
    return (_interpolated if how == "bilinear" else _recut)(weight, old, new)


def _interpolated(weight: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Real and imaginary part as two images; the constant term stays where it is."""
    images = weight.flatten(-2).movedim(-1, 0)[None]
    mode = "bilinear" if len(old) == 2 else "linear"
    found = F.interpolate(images, half(new), mode=mode, align_corners=True)
    return found[0].movedim(0, -1).unflatten(-1, (-1, 2))


def _recut(weight: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Kernel in space, cut or filled with zeros far from its centre."""
    axes = tuple(range(len(old)))
    kernel = torch.fft.irfftn(torch.view_as_complex(weight.contiguous()), s=old, dim=axes)
    kernel = torch.fft.fftshift(kernel, axes)
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        # Offset 0 lies at half the length, rounded down, before and after.
        first = before // 2 - after // 2
        kernel = kernel.narrow(axis, max(first, 0), min(before, after))
        fill = [0, 0] * (kernel.dim() - 1 - axis)
        left = max(-first, 0)
        kernel = F.pad(kernel, [*fill, left, after - kernel.shape[axis] - left])
    spectrum = torch.fft.rfftn(torch.fft.ifftshift(kernel, axes), dim=axes)
    return torch.view_as_real(spectrum)
