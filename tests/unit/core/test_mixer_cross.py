"""What holds for all layers that can make their queries themselves."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from manyhead_core.attention.masks import KeyPadding
from manyhead_core.attention.mixer import TokenMixer
from manyhead_core.attention.mixers.conditional_cross import ConditionalCrossAttention
from manyhead_core.attention.mixers.glca import GlobalLocalCrossAttention
from manyhead_core.attention.mixers.label_cross import LabelCrossAttention
from manyhead_core.attention.mixers.low_rank_pool import LowRankPooling
from manyhead_core.attention.mixers.pooled_cross import PooledCrossAttention
from manyhead_core.attention.mixers.realloc import ReallocationAttention
from manyhead_core.attention.mixers.summary import SummaryAttention

FAMILY: dict[str, Callable[[], TokenMixer]] = {
    "glca": lambda: GlobalLocalCrossAttention(8, 2, share=0.4),
    "conditional_cross": lambda: ConditionalCrossAttention(8, 2, num_conditions=3),
    "pooled_cross": lambda: PooledCrossAttention(8, 2, ratio=4),
    "summary": lambda: SummaryAttention(8, 2, num_tasks=2, num_selectors=3, prefix=1),
    "label_cross": lambda: LabelCrossAttention(8, 2, num_labels=3),
    "low_rank_pool": lambda: LowRankPooling(8, 2, rank=3),
    "last_pool": lambda: LowRankPooling(8, 2, rank=3, query="last"),
    "realloc": lambda: ReallocationAttention(8, 2),
}


class Reader(nn.Module):
    """A mixer on padded tokens, alone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = FAMILY[name]()
        for parameter in self.mixer.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        given = {"rollout": x[..., 0]} if self.mixer.name == "glca" else {}
        return self.mixer(x, mask=KeyPadding(valid), **given).y


def padded(batch: int, count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.arange(batch) % count + 1
    return (
        torch.randn(batch, count, 8, generator=generator),
        torch.arange(count) < lengths[:, None],
    )


@pytest.mark.parametrize("name", FAMILY)
def test_given_queries_keep_their_number(name: str) -> None:
    mixer = Reader(name).mixer
    queries, x = torch.randn(2, 8, 8), torch.randn(2, 5, 8)
    assert mixer(queries, x).y.shape == queries.shape


@pytest.mark.parametrize("name", FAMILY)
def test_samples_do_not_interact(name: str) -> None:
    reader, (x, valid) = Reader(name), padded(4)
    whole = reader(x, valid)
    for b in range(4):
        torch.testing.assert_close(reader(x[b : b + 1], valid[b : b + 1])[0], whole[b])


@pytest.mark.parametrize("name", FAMILY)
def test_autocast_is_close_to_float32(name: str) -> None:
    reader, (x, valid) = Reader(name), padded(3)
    expected = reader(x, valid)
    with torch.autocast("cpu", torch.bfloat16):
        found = reader(x, valid)
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert error < 2e-2


@pytest.mark.parametrize("name", FAMILY)
def test_exported_graph_takes_other_batch_sizes(name: str) -> None:
    reader = Reader(name).eval()
    size = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(reader, padded(2), dynamic_shapes=({0: size}, {0: size}))
    for batch in (1, 5):
        found = program.module()(*padded(batch))
        torch.testing.assert_close(found, reader(*padded(batch)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILY)
def test_compiles_without_graph_breaks(name: str) -> None:
    torch.compiler.reset()
    reader = Reader(name)
    compiled = torch.compile(reader, fullgraph=True, dynamic=True)
    for batch, count in ((2, 6), (3, 9)):
        torch.testing.assert_close(compiled(*padded(batch, count)), reader(*padded(batch, count)))
