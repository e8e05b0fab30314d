"""The grid of a 2-D layout, for mixers that cut it into parts."""

from __future__ import annotations

from operator import index

from manyhead_core.errors import ConfigError


def known_grid(grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid as plain numbers, also while a graph with free sizes is compiled.

    How a map falls into regions depends on its size in divisions and remainders. A compiler that
    keeps the size free needs minutes for them, or gives up; with known numbers it needs seconds,
    once for each size of map. The batch stays free.

    Raises:
        ConfigError: There is none.
    """
    if grid is None:
        raise ConfigError("grid: pass the height and width of the map in tokens")
    return index(grid[0]), index(grid[1])
