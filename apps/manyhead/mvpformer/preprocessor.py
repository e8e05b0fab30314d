"""What is kept with the weights so that new recordings are treated as those of the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from manyhead.mvpformer.events.postprocess import PostOptions
from manyhead.mvpformer.preparing.contract import ChannelContract
from manyhead.mvpformer.preparing.options import PrepareOptions
from manyhead.mvpformer.windows import WindowOptions
from manyhead_core.errors import WeightsError

FORMAT = 1
CLASSES = ("background", "seizure")


@dataclass(frozen=True, kw_only=True)
class SeizurePreprocessor:
    """How recordings become windows, and probabilities seizures.

    Args:
        windows: Layout of the windows.
        prepare: Rate, filters, montage and channels.
        post: Median, threshold, joining and shortest length.
        contract: Channels of the training recordings, or None where nobody wrote them down.
        class_names: In the order of the network's outputs.
    """

    windows: WindowOptions = field(default_factory=WindowOptions)
    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    post: PostOptions = field(default_factory=PostOptions)
    contract: ChannelContract | None = None
    class_names: tuple[str, ...] = CLASSES

    @property
    def segment_samples(self) -> int:
        """Samples of a segment as the network takes them."""
        return self.windows.segment_samples(self.prepare.rate)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able part and tensors, as weights folders keep them."""
        meta: dict[str, Any] = {"format": FORMAT, "class_names": list(self.class_names)}
        for name in ("windows", "prepare", "post"):
            meta[name] = _plain(asdict(getattr(self, name)))
        meta["contract"] = None if self.contract is None else _plain(asdict(self.contract))
        return meta, {}

    @classmethod
    def from_state(
        cls,
        meta: Mapping[str, Any],
        tensors: Mapping[str, Tensor],  # noqa: ARG003  all apps' preprocessors are read alike
    ) -> SeizurePreprocessor:
        """The inverse of `state`.

        Raises:
            WeightsError: It was written by a newer version, or is damaged.
        """
        if meta.get("format", 0) > FORMAT:
            raise WeightsError(
                f"weights: the preprocessor has format {meta['format']}, this version reads up to "
                f"{FORMAT}; update manyhead"
            )
        try:
            contract = meta.get("contract")
            return cls(
                windows=WindowOptions(**meta["windows"]),
                prepare=PrepareOptions(**_tuples(meta["prepare"])),
                post=PostOptions(**meta["post"]),
                contract=None if contract is None else ChannelContract(**_tuples(contract)),
                class_names=tuple(meta["class_names"]),
            )
        except (KeyError, TypeError) as err:
            raise WeightsError(
                f"weights: the preprocessor is damaged ({err}); export again"
            ) from err


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
