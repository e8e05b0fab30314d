"""Batches of encoded rows: shuffled in windows, at the speed of memory, exact on resuming."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyhead.autoint.rows import Rows
from manyhead.autoint.store import Array, Store, columns, from_columns
from manyhead_core.errors import ConfigError, DataError

# Two windows are in memory at a time: 175 MB for 39 fields. Twice the rows stream a third slower,
# because a window no longer fits the caches; a window mixes 32 blocks from all over the file.
WINDOW_ROWS = 2**18


class RowLoader:
    """Batches of a store, in an order that follows from seed and epoch alone.

    Training draws whole blocks in random order, joins them to windows of `window_rows` and
    permutes each window; a set that fits into one window is shuffled exactly. The order depends
    neither on the device nor on the number of processes: each global batch of
    `batch_size * world_size` rows is cut into one contiguous slice a process.

    Batches are views of a window; they may be kept, at the price of the window's memory.
    Iterating goes on where the last iteration stopped, which is how a resumed run meets exactly
    the batches it would have met; without shuffling it always starts with the first row.

    Args:
        store: The encoded rows.
        batch_size: Rows of a batch of one process.
        shuffle: Whether to draw in random order.
        seed: Seed of the order.
        window_rows: Rows that are permuted together; two windows are in memory at a time.
        rank: Number of this process.
        world_size: Number of processes.
        drop_last: Leave out the last global batch when it is not full. Otherwise it is cut to a
            multiple of `world_size`.
        device: Keep all rows on this device; None streams them from the file unless they fit
            into one window.
        pin_memory: Build windows in page-locked memory, for quick copies to a GPU.

    Raises:
        ConfigError: A size that is not positive.
        DataError: The store has no full batch.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        window_rows: int = WINDOW_ROWS,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        device: torch.device | None = None,
        pin_memory: bool = False,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("window_rows", window_rows)):
            if number < 1:
                raise ConfigError(f"data.{name}: must be at least 1, got {number}")
        self.store, self.batch_size, self.shuffle, self.seed = store, batch_size, shuffle, seed
        self.window_blocks = max(1, window_rows // store.block_rows)
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.device = device
        self.epoch = self.position = 0
        self._resident: list[Tensor] | None = None
        if not len(self):
            raise DataError(
                f"data.batch_size: {batch_size} rows x {world_size} process(es) are more than the "
                f"{len(store)} rows of {store.path.stem}; choose a smaller batch"
            )
        self._buffers = _Buffers(columns(store.block(0)), pin_memory)

    def __len__(self) -> int:
        rows, batch = len(self.store), self.batch_size * self.world_size
        full, rest = divmod(rows, batch)
        return full if self.drop_last or rest < self.world_size else full + 1

    def __iter__(self) -> Iterator[Rows]:
        start, self.position = (self.position if self.shuffle else 0), 0
        stream = _Stream(self._windows(self._slice(start)[0]))
        for step in range(start, len(self)):
            low, high = self._slice(step)
            batch = stream.take(low, high)
            self.position = step + 1
            if self.position == len(self):
                self.position, self.epoch = 0, self.epoch + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches that it has given of it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch after the saved position."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _slice(self, step: int) -> tuple[int, int]:
        """Place of this process's part of global batch `step` in the order of the epoch."""
        start = step * self.batch_size * self.world_size
        share = min(self.batch_size, (len(self.store) - start) // self.world_size)
        low = start + self.rank * share
        return low, low + share

    def _windows(self, first: int) -> Iterator[_Window]:
        """The windows of this epoch, from the one that holds place `first` of the order."""
        blocks = np.arange(self.store.num_blocks)
        if self.shuffle:
            blocks = self._random(0).permutation(blocks)
        groups = [blocks[i : i + self._group] for i in range(0, len(blocks), self._group)]
        sizes = [sum(self.store.block_size(int(b)) for b in group) for group in groups]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        number = int(np.searchsorted(starts, first, side="right")) - 1
        plans = [(int(starts[i]), groups[i], i) for i in range(number, len(groups))]
        if self.device is None and not self.shuffle:
            yield from (self._views(start, group) for start, group, _ in plans)
        elif self.device is not None or len(groups) == 1:
            self._load()
            yield from (self._from_memory(*plan) for plan in plans)
        else:
            yield from self._prefetched(plans)

    @property
    def _group(self) -> int:
        # Without an order to make, a block is a window: its batches are views of the file.
        return 1 if self.device is None and not self.shuffle else self.window_blocks

    def _random(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**32, self.epoch, *what])

    def _places(self, blocks: Array, window: int) -> Array:
        """Place in the window of each of its rows."""
        size = sum(self.store.block_size(int(block)) for block in blocks)
        return self._random(1, window).permutation(size)

    def _prefetched(self, plans: list[tuple[int, Array, int]]) -> Iterator[_Window]:
        with ThreadPoolExecutor(1, "windows") as pool:
            coming: Future[_Window] | None = None
            for plan in plans:
                ready, coming = coming, pool.submit(self._permuted, *plan)
                if ready is not None:
                    yield ready.result()
                del ready  # else three windows would be in memory
            if coming is not None:
                yield coming.result()

    def _permuted(self, start: int, blocks: Array, number: int) -> _Window:
        """A window in its final order, built from the file."""
        places = torch.from_numpy(self._places(blocks, number))
        parts = self._buffers.take(len(places))
        done = 0
        for block in blocks:
            rows = columns(self.store.block(int(block)))
            here = places[done : done + len(rows[0])]
            for part, column in zip(parts, rows, strict=True):
                part.index_copy_(0, here, column)
            done += len(here)
        return _Window(start, parts)

    def _views(self, start: int, blocks: Array) -> _Window:
        return _Window(start, columns(self.store.block(int(blocks[0]))))

    def _load(self) -> None:
        """Copy all rows to memory, once for all epochs."""
        if self._resident is not None:
            return
        resident = [
            torch.empty((len(self.store), *shape), dtype=dtype, device=self.device)
            for shape, dtype in self._buffers.shapes
        ]
        done = 0
        for block in self.store.blocks():
            for part, column in zip(resident, columns(block), strict=True):
                part[done : done + len(column)] = column
            done += len(block.label)
        self._resident = resident

    def _from_memory(self, start: int, blocks: Array, number: int) -> _Window:
        """A window in its final order, gathered from resident rows."""
        assert self._resident is not None  # noqa: S101
        starts = blocks * self.store.block_rows
        ends = starts + [self.store.block_size(int(block)) for block in blocks]
        if not self.shuffle:
            return _Window(start, [part[starts[0] : ends[-1]] for part in self._resident])
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
        order = np.empty_like(rows)
        order[self._places(blocks, number)] = rows
        chosen = torch.from_numpy(order).to(self._resident[0].device)
        if chosen.device.type != "cpu":
            return _Window(start, [part.index_select(0, chosen) for part in self._resident])
        parts = self._buffers.take(len(chosen))
        for part, column in zip(parts, self._resident, strict=True):
            torch.index_select(column, 0, chosen, out=part)
        return _Window(start, parts)


class _Buffers:
    """Memory for windows, used again once no batch looks at it any more.

    Fresh memory has to be mapped page by page, which takes longer than filling it.

    Args:
        like: One tensor a column, of the right width and type.
        pin_memory: Take page-locked memory, which torch itself keeps for the next use.
    """

    def __init__(self, like: list[Tensor], pin_memory: bool) -> None:
        self.shapes = [(column.shape[1:], column.dtype) for column in like]
        self._pin_memory = pin_memory
        self._kept: list[list[Array]] = []

    def take(self, rows: int) -> list[Tensor]:
        """Uninitialised tensors of so many rows."""
        if self._pin_memory:
            return [
                torch.empty((rows, *shape), dtype=dtype, pin_memory=True)
                for shape, dtype in self.shapes
            ]
        kept = next((arrays for arrays in self._kept if _is_free(arrays, rows)), None)
        if kept is None:
            self._kept = [arrays for arrays in self._kept if not _is_free(arrays, 0)]
            kept = [
                torch.empty((rows, *shape), dtype=dtype).numpy() for shape, dtype in self.shapes
            ]
            self._kept.append(kept)
        return [torch.from_numpy(array)[:rows] for array in kept]


def _is_free(arrays: list[Array], rows: int) -> bool:
    # References: the list, the argument of getrefcount. A tensor made from the array, and any
    # view of it, would hold one more.
    idle = all(sys.getrefcount(arrays[place]) <= 2 for place in range(len(arrays)))
    return idle and len(arrays[0]) >= rows


class _Window(NamedTuple):
    """Rows in the order of the epoch, from place `start` on."""

    start: int
    parts: list[Tensor]

    @property
    def end(self) -> int:
        """Place after the last row."""
        return self.start + len(self.parts[0])

    def rows(self, low: int, high: int, copy: bool) -> list[Tensor]:
        """Rows of places `low` to `high`, as far as they lie in this window; views or copies."""
        low, high = max(low, self.start) - self.start, min(high, self.end) - self.start
        return [part[low:high].clone() if copy else part[low:high] for part in self.parts]


class _Stream:
    """Reads ascending ranges from windows that come one after the other."""

    def __init__(self, windows: Iterator[_Window]) -> None:
        self._windows = windows
        self._window: _Window | None = None

    def take(self, low: int, high: int) -> Rows:
        """Rows of places `low` to `high`, across windows where need be."""
        pieces: list[list[Tensor]] = []
        while True:
            if self._window is None or self._window.end <= low:
                self._window = None  # let go of it before the next one is made
                self._window = next(self._windows)
                continue
            pieces.append(self._window.rows(low, high, copy=self._is_near_end(low, high)))
            low = min(high, self._window.end)
            if low == high:
                break
        if len(pieces) == 1:
            return from_columns(pieces[0])
        return from_columns([torch.cat(parts) for parts in zip(*pieces, strict=True)])

    def _is_near_end(self, low: int, high: int) -> bool:
        # A caller that still holds the batch before would keep this window beside two new ones.
        return self._window is not None and high + 2 * (high - low) > self._window.end
