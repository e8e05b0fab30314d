"""EDF, EDF+, BDF and BDF+ files: rates that differ, pauses, odd units and double names."""

from __future__ import annotations

from collections.abc import Sequence

from manyhead.mvpformer.readers.annotations import from_remarks
from manyhead.mvpformer.readers.channels import Channel, Chosen, choose, kind_of
from manyhead.mvpformer.readers.edf_header import EdfHeader, blocks_of, read_clock, read_header
from manyhead.mvpformer.readers.files import Block, gaps_between, merged
from manyhead.mvpformer.readers.mne_reader import Lookup, MneFile, MneRecording, pauses
from manyhead.mvpformer.readers.options import ReadOptions
from manyhead.mvpformer.readers.source import Source
from manyhead.mvpformer.readers.units import MICROVOLTS, microvolts
from manyhead.mvpformer.recording import Recording, RecordingInfo
from manyhead_core.errors import DataError

# V per stored number as mne takes it, by the unit in the header; it takes any other for 1 V.
MNE_SCALES = {"mV": 1e-3} | dict.fromkeys(("uV", "µV", "\u03bcV", "\x83\xcaV"), 1e-6)

# Of the clock of a file without pauses; less is rounding of the times of records.
PAUSE_S = 1.0


def open_edf(
    source: Source,
    options: ReadOptions,
    table: Sequence[Channel] | None = None,
    lookup: Lookup | None = None,
) -> Recording:
    """An EDF or BDF recording.

    Args:
        source: What was found.
        options: How to read it.
        table: Signals as `channels.tsv` describes them, in the order of the file.
        lookup: Seizures that are known elsewhere; otherwise EDF+ annotations are searched.

    Raises:
        DataError: The file is damaged.
    """
    header = read_header(source.path, source.id)
    described = list(table or _described(header))
    chosen = choose(_usable(described, header))
    picks = [header.signals[pick] for pick in chosen.picks]
    per_record = header.samples[picks[0]] if picks else 1
    starts, remarks = read_clock(source.path, header)
    blocks = _blocks(source.id, header, starts, per_record)
    rate, samples = per_record / header.seconds, blocks[-1].start + blocks[-1].length
    found = (
        lookup(samples / rate)
        if lookup
        else from_remarks(remarks, source.id, samples / rate, options.pattern)
    )
    gaps = (*gaps_between(blocks, rate), *pauses(remarks, samples / rate))
    info = RecordingInfo(
        id=source.id,
        patient=source.patient,
        path=source.path,
        channels=chosen.names,
        kinds=chosen.kinds,
        rate=rate,
        samples=samples,
        seizures=found.seizures,
        dropped=chosen.dropped,
        gaps=merged(gaps),
        named=any(header.labels[pick] for pick in picks),
        notes=(*_notes(header, starts), *found.notes),
    )
    file, order = _file(source, header, chosen)
    factors = [_factor(header, described, number, options.units) for number in chosen.picks]
    return MneRecording(info, file, order, factors, blocks)


def _described(header: EdfHeader) -> list[Channel]:
    return [
        Channel(
            name=header.labels[signal],
            kind=kind_of(header.labels[signal]),
            unit=header.units[signal],
            rate=header.rate(signal),
        )
        for signal in header.signals
    ]


def _usable(channels: Sequence[Channel], header: EdfHeader) -> list[Channel]:
    """Channels with the reasons that the header gives to leave some out."""
    found = []
    for channel, signal in zip(channels, header.signals, strict=True):
        unit, why = header.units[signal], channel.why
        if not why and microvolts(unit) is None:
            why = f"unit {unit} is no voltage"
        found.append(
            Channel(
                name=channel.name,
                kind=channel.kind,
                unit=channel.unit,
                rate=header.rate(signal),
                why=why,
            )
        )
    return found


def _blocks(id: str, header: EdfHeader, starts: list[float], per_record: int) -> list[Block]:
    if not header.discontinuous:
        return [Block(0, 0, header.records * per_record)]
    try:
        return blocks_of(starts, header.seconds, per_record)
    except ValueError as error:
        raise DataError(
            f"{id}: the clock of the file runs backwards ({error}); export it again"
        ) from error


def _notes(header: EdfHeader, starts: Sequence[float]) -> tuple[str, ...]:
    notes = []
    if header.declared not in (-1, header.records):
        held = f"the file holds {header.records}"
        notes.append(f"the header promises {header.declared} records, {held}")
    off = max(abs(start - number * header.seconds) for number, start in enumerate(starts))
    if off > PAUSE_S and not header.discontinuous:
        notes.append(f"the file says it has no pauses, but its clock is off by up to {off:.1f} s")
    return tuple(notes)


def _file(source: Source, header: EdfHeader, chosen: Chosen) -> tuple[MneFile, list[int]]:
    """How mne opens the file, and the channels in its order.

    Beside a channel of a higher rate mne would resample the others, by piece.
    """
    whole = MneFile(source.path)
    rates = {header.samples[signal] for signal in header.signals}
    if len(rates) < 2 or not chosen.picks:
        return whole, chosen.picks
    raw = whole.load()
    kept = set(chosen.picks)
    names = [name for number, name in enumerate(raw.ch_names) if number not in kept]
    raw.close()
    return MneFile(source.path, tuple(names)), list(range(len(kept)))


def _factor(header: EdfHeader, table: Sequence[Channel], number: int, units: str) -> float:
    """µV per unit of mne."""
    written = header.units[header.signals[number]]
    stored = 1.0 / MNE_SCALES.get(written, 1.0)
    unit = (written or table[number].unit) if units == "auto" else units
    return stored * (microvolts(unit) or MICROVOLTS["uV"])
