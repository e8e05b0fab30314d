"""Blocks of query steps, and pieces of batch and key heads, that the chunked form works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from manyhead_core.attention.multivariate.inputs import Parts, Rules

# Rows of a block up to which steps are put together, and weights that a block may hold. One AMD
# EPYC thread: 100 to 250 rows and 2^19 to 2^21 weights take the same time within 10 %.
ROWS = {"cpu": 192, "cuda": 1024}
WEIGHTS = {"cpu": 2**20, "cuda": 2**26}


class Block(NamedTuple):
    """Query steps that are worked on together.

    Args:
        start: First step.
        stop: Step after the last one; also the number of key steps that they see.
        far: For each of them, how many of the oldest key steps have no content for it.
        near: First key step that has content for any of them; `stop` if none has.
    """

    start: int
    stop: int
    far: tuple[int, ...]
    near: int

    @property
    def size(self) -> int:
        """Query steps."""
        return self.stop - self.start


def plan(rules: Rules, steps: int, size: int) -> list[Block]:
    """Blocks of up to `size` steps; within a block all steps have far keys, or none has.

    The newest comes first: it needs most memory, which the others then find.

    Args:
        rules: Content window.
        steps: Steps of the grid.
        size: Most steps of a block.
    """
    far = [outside(rules, step, steps) for step in range(steps)]
    found, start = [], 0
    for stop in range(1, steps + 1):
        if stop == steps or stop - start == size or (far[stop] > 0) != (far[start] > 0):
            near = far[start] if rules.content else stop
            found.append(Block(start, stop, tuple(far[start:stop]), near))
            start = stop
    return found[::-1]


def outside(rules: Rules, step: int, steps: int) -> int:
    """How many of the oldest key steps have no content for a query step."""
    if not rules.content:
        return step + 1
    return 0 if step == steps - 1 else max(0, step - rules.window)


def block_size(parts: Parts) -> int:
    """Query steps of a block."""
    rows = parts.query.shape[1] // parts.key.shape[1] * parts.channels
    return max(1, min(ROWS.get(parts.query.device.type, 1024) // rows, parts.steps))


class Piece(NamedTuple):
    """Batch elements and key heads that are worked on together.

    Args:
        batch: Which elements.
        heads: Which key heads.
    """

    batch: slice
    heads: slice

    @property
    def place(self) -> tuple[int, int]:
        """Where it begins."""
        return self.batch.start, self.heads.start


def pieces(parts: Parts, size: int) -> Iterator[Piece]:
    """Pieces that hold one key head at least, and no more weights than they may.

    Args:
        parts: Sizes and device.
        size: Steps of a block.
    """
    batch, heads, tokens, _ = parts.query.shape
    shared = parts.key.shape[1]
    weights = size * heads // shared * parts.channels * tokens
    most = max(1, WEIGHTS.get(parts.query.device.type, 2**26) // max(1, weights))
    if most >= shared:
        for first in range(0, batch, most // shared):
            yield Piece(slice(first, min(batch, first + most // shared)), slice(0, shared))
        return
    for one in range(batch):
        for first in range(0, shared, most):
            yield Piece(slice(one, one + 1), slice(first, min(shared, first + most)))


class Gates(NamedTuple):
    """Zero where a pair of steps is of a kind, else minus infinity, `(T, 1, T)`.

    Args:
        near: With content.
        far: Without.
    """

    near: Tensor
    far: Tensor

    @classmethod
    def of(cls, rules: Rules, steps: int, like: Tensor) -> Gates:
        """For a grid."""
        step = torch.arange(steps, device=like.device)
        past = step[:, None] >= step
        content = rules.uses_content(steps, like.device)
        zero = like.new_zeros(steps, steps)
        near, far = (
            zero.masked_fill(~(past & kind), -torch.inf)[:, None] for kind in (content, ~content)
        )
        return cls(near, far)


@dataclass
class Workspace:
    """Memory that all blocks use in turn.

    Args:
        like: Number format and device.
        held: By name.
    """

    like: Tensor
    held: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor with anything in it; what had this name before is lost."""
        count = torch.Size(shape).numel()
        if name not in self.held or len(self.held[name]) < count:
            self.held[name] = self.like.new_empty(count)
        return self.held[name][:count].view(shape)
