"""What a trained network expects of the channels, and how a recording differs from it.

The contract:

* **Number.** Any number of channels from 1 to the rows of the channel table works, without
  padding and without filling up. More channels are an error that names both numbers.
* **Order.** The channel part of the attention depends on how far apart two channels stand in the
  list, `|c - c'|`, and on nothing else about them. So the order matters, its direction does not:
  reversed channels get the same output. Neighbours in the list should be neighbours in the brain:
  contacts of a shaft in order, shafts one after the other, which is the order of most files.
* **Distances depend on the number.** Row `C - 1 - d` of the table stands for the distance `d`
  among `C` channels. A network trained with 64 channels meets other rows when it is given 32.
* **Names and positions** are not seen by the network. They are compared only to find out that a
  file has another order than the training had.
* **Reference.** The amplitude of each channel and segment is normalised away, the reference is
  not: a network that was trained on a median reference should be given one.
* **Arbitrary order.** Files without names (numbered channels) have an order that means nothing
  known. The network takes them, with a warning; averaging over several orders is the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from manyhead.mvpformer.preparing.choice import too_many
from manyhead.mvpformer.preparing.options import PrepareOptions
from manyhead.mvpformer.recording import RecordingInfo
from manyhead_core.errors import WeightsError


class Source(Protocol):
    """What the contract asks of a prepared recording."""

    info: RecordingInfo
    options: PrepareOptions
    channels: tuple[str, ...]
    rate: float


@dataclass(frozen=True, kw_only=True)
class ChannelContract:
    """Channels of the recordings a network was trained on; kept with its weights.

    Args:
        names: Of the channels, in order, if all recordings had the same; else empty.
        count: Least and greatest number of channels in a recording.
        reference: Montage of the training.
        rate: Samples per second, Hz.
        rows: Rows of the network's channel table.
        named: Whether the files named their channels, so that their order meant something.
    """

    names: tuple[str, ...] = ()
    count: tuple[int, int] = (1, 128)
    reference: str = "none"
    rate: float = 512.0
    rows: int = 128
    named: bool = True

    @classmethod
    def of(cls, recordings: Sequence[Source], rows: int = 128) -> ChannelContract:
        """The contract of some recordings that were prepared alike.

        Args:
            recordings: Of the training; at least one.
            rows: Rows of the network's channel table.

        Raises:
            DataError: A recording has more channels than the table has rows.
        """
        counts = [len(r.channels) for r in recordings]
        for recording, count in zip(recordings, counts, strict=True):
            if count > rows:
                raise too_many(recording.info.id, count, rows)
        first = recordings[0]
        named = all(r.info.named for r in recordings)
        same = named and all(r.channels == first.channels for r in recordings)
        return cls(
            names=first.channels if same else (),
            count=(min(counts), max(counts)),
            reference=first.options.montage,
            rate=first.rate,
            rows=rows,
            named=named,
        )

    def state(self) -> dict[str, Any]:
        """The contract as JSON knows it."""
        return asdict(self) | {"names": list(self.names), "count": list(self.count)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChannelContract:
        """The inverse of `state`.

        Raises:
            WeightsError: Something of it is missing.
        """
        try:
            least, most = state["count"]
            return cls(
                names=tuple(state["names"]),
                count=(int(least), int(most)),
                reference=str(state["reference"]),
                rate=float(state["rate"]),
                rows=int(state["rows"]),
                named=bool(state["named"]),
            )
        except (KeyError, TypeError, ValueError) as err:
            raise WeightsError(
                f"weights: the channel contract is damaged ({err}); export the weights again"
            ) from err


def compare(contract: ChannelContract, prepared: Source) -> list[str]:
    """How a recording differs from the training, one warning each; empty if it does not.

    Args:
        contract: Of the network.
        prepared: The recording.

    Raises:
        DataError: More channels than the network's channel table has rows.
    """
    name, channels = prepared.info.id, prepared.channels
    if len(channels) > contract.rows:
        raise too_many(name, len(channels), contract.rows)
    found = []
    least, most = contract.count
    if not least <= len(channels) <= most:
        trained = f"{least}" if least == most else f"{least} to {most}"
        found.append(
            f"{name}: {len(channels)} channels, the network was trained with {trained}; the "
            "rows of the channel table stand for other distances"
        )
    found += _names(contract, prepared)
    if prepared.options.montage != contract.reference:
        found.append(
            f"{name}: montage {prepared.options.montage}, the network was trained with "
            f"{contract.reference}; set --montage {contract.reference}"
        )
    if prepared.rate != contract.rate:
        found.append(
            f"{name}: prepared at {prepared.rate:g} Hz, the network was trained at "
            f"{contract.rate:g}; set --rate {contract.rate:g}"
        )
    return found


def _names(contract: ChannelContract, prepared: Source) -> list[str]:
    name, channels = prepared.info.id, prepared.channels
    if not prepared.info.named:
        return [
            f"{name}: its channels have no names, so their order may be arbitrary, and the order "
            "matters to the network; --orders 8 of predict and explain averages over orders"
        ]
    # The direction of the order is not seen by the network.
    if not contract.names or channels in (contract.names, contract.names[::-1]):
        return []
    if set(channels) == set(contract.names):
        return [
            f"{name}: the channels stand in another order than in the training; give the order "
            "with --channels"
        ]
    missing = [c for c in contract.names if c not in channels]
    strange = [c for c in channels if c not in contract.names]
    parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
    parts += [f"has {', '.join(strange[:5])} in addition"] if strange else []
    return [f"{name}: other channel names than in the training: {' and '.join(parts)}"]
