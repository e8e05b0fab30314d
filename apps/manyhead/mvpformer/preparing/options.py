"""How a recording is prepared: rate, filters, montage and channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from manyhead_core.errors import ConfigError

Montage = Literal["none", "average", "median", "bipolar"]
# Lower edges make the filter longer than most recordings that need one.
LOWEST_EDGE = 0.1
RULES = ("all", "first", "even", "variance", "kurtosis")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What is done to a recording before it is cut into windows.

    Args:
        rate: Samples per second that the network takes, Hz.
        mode: `reference` resamples as the published code does, by linear interpolation.
        resample: `band_limited` keeps what is below the lower half rate and adds nothing;
            `linear` lets higher frequencies fold back.
        notch: Mains frequency that is taken out with its harmonics, 50 or 60 Hz; 0 leaves it.
        band: Lowest and highest frequency that is kept, Hz; 0 is open. Half of the amplitude is
            left at an edge.
        montage: `none` leaves the reference of the file, `average` and `median` are taken over
            the channels, `bipolar` is the difference of neighbouring contacts of a shaft.
        channels: `all`, a rule (`first`, `even`, `variance` or `kurtosis`) that chooses
            `max_channels`, or names with commas in between, in the order wanted. Names are those
            after the montage, such as `A1-A2`.
        max_channels: Most channels that are given to the network.
        flat: `keep` or `drop` channels without any signal.
        seed: Of the places at which a recording is looked at to find flat channels and to rank.

    Raises:
        ConfigError: A value that cannot be used.
    """

    rate: float = 512.0
    mode: Literal["default", "reference"] = "default"
    resample: Literal["band_limited", "linear"] = "band_limited"
    notch: float = 0.0
    band: tuple[float, float] = (0.0, 0.0)
    montage: Montage = "none"
    channels: str = "all"
    max_channels: int = 128
    flat: Literal["keep", "drop"] = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"rate: {self.rate:g} Hz; a positive rate is needed, such as 512")
        if self.max_channels < 1:
            raise ConfigError(f"max_channels: {self.max_channels}; at least 1 is needed")
        if not 0 <= self.notch < self.rate / 2:
            raise ConfigError(
                f"notch: {self.notch:g} Hz is not between 0 and half of the rate, "
                f"{self.rate / 2:g}; use 50 or 60, or 0 for none"
            )
        if not self.names and self.channels not in RULES:
            raise ConfigError(
                f"channels: {self.channels!r} is empty; use {', '.join(RULES)}, or names"
            )
        self._check_band()

    def _check_band(self) -> None:
        low, high = self.band
        if low and low < LOWEST_EDGE:
            raise ConfigError(
                f"band: the lower edge is {low:g} Hz; use {LOWEST_EDGE:g} or more, or 0 for none"
            )
        if high and not low < high < self.rate / 2:
            raise ConfigError(
                f"band: the upper edge {high:g} Hz is not between the lower edge {low:g} and "
                f"half of the rate, {self.rate / 2:g}; lower it, or use 0 for none"
            )
        if low >= self.rate / 2:
            raise ConfigError(
                f"band: the lower edge {low:g} Hz is not below half of the rate, {self.rate / 2:g}"
            )

    @property
    def linear(self) -> bool:
        """Whether the rate is changed by linear interpolation."""
        return self.mode == "reference" or self.resample == "linear"

    @property
    def names(self) -> tuple[str, ...]:
        """Channels that are asked for by name; none if a rule chooses."""
        if self.channels in RULES:
            return ()
        return tuple(name for part in self.channels.split(",") if (name := part.strip()))

    def with_names(self, names: tuple[str, ...]) -> PrepareOptions:
        """The same for exactly these channels, such as those of another recording of a patient.

        Args:
            names: Of the channels after the montage, in order.
        """
        return replace(self, channels=",".join(names))
