"""The same small model with every mixer on one learnable task for each attention pattern."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Outcome, Result, Setting, Spread
from manyhead_core.attention.masks import Causal
from manyhead_core.attention.mixer import TokenMixer, after_step, weighted_aux
from manyhead_core.attention.registry import MIXERS, build, mixer_class

DIM, HEADS, LAYERS, RATE = 32, 4, 2, 3e-3
FULL = "softmax"
PLACES = 0.7  # spread of the position codes
LABELS, ROWS = 6, 2
# A metric where less is better counts with the minus sign.
LESS_IS_BETTER = ("log_loss",)
OPTIONS: dict[str, dict[str, Any]] = {
    "rcmha": {"max_distance": 128},
    "inline": {"local": "none"},
    "dynamic_mask": {"keep_window": 16},
    "aggregated": {"sr_ratio": 4},
    "bra": {"num_windows": 4},
    "lsda": {"group_size": 4, "pos_dim": 8},
    "halo": {"block_size": 4, "halo_size": 1},
    "neighborhood": {"window_size": 3},
    "routing": {"num_clusters": 4, "window_size": 16},
    # The block adds the queries itself.
    "pooled_cross": {"residual": False},
    "summary": {"residual": False, "num_tasks": LABELS, "num_selectors": ROWS - 1},
}


@dataclass(frozen=True)
class Split:
    """Samples of a task.

    Args:
        tokens: Integers `(samples, tokens)` or features `(samples, tokens, features)`.
        queries: Integers `(samples, queries)`; None for self patterns.
        target: Class of each sample or token; for labels, 0 or 1 of each.
    """

    tokens: Tensor
    queries: Tensor | None
    target: Tensor

    def batch(self, index: Tensor) -> Split:
        """Some of the samples."""
        queries = None if self.queries is None else self.queries[index]
        return Split(self.tokens[index], queries, self.target[index])


@dataclass(frozen=True)
class Task:
    """What is learned in one attention pattern.

    Args:
        name: Name in the results.
        pattern: One of `NS`, `CS`, `NC`, `CC`.
        draw: Training and test samples for a seed.
        features: Width of a token; 0 if tokens are integers below `items`.
        items: Different tokens.
        classes: Outputs of each place.
        loss: `class` of a sample, `token` for a class of each token, `labels` for yes or no.
        grid: Height and width of the tokens.
        top: A target among this many best classes counts as a hit.
        steps: Training steps.
        batch: Samples of a step.
        skipped: Mixers that declare the pattern and cannot do the task, with the reason.
    """

    name: str
    pattern: str
    draw: Callable[[int], tuple[Split, Split]]
    classes: int
    loss: str
    features: int = 0
    items: int = 0
    grid: tuple[int, int] | None = None
    top: int = 1
    steps: int = 300
    batch: int = 64
    skipped: Mapping[str, str] = field(default_factory=dict)


def digits(seed: int) -> tuple[Split, Split]:
    """Handwritten digits of scikit-learn, 8 x 8 pixels as tokens; a third is for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=1 / 3, random_state=seed, stratify=labels)
    pixels = [torch.tensor(part, dtype=torch.float32)[..., None] / 8 - 1 for part in parts[:2]]
    classes = [torch.tensor(part) for part in parts[2:]]
    return Split(pixels[0], None, classes[0]), Split(pixels[1], None, classes[1])


def next_items(seed: int, items: int = 40, length: int = 32) -> tuple[Split, Split]:
    """Histories: at times the usual successor of an item, mostly a favourite.

    A user's three favourites are known only from the history, so that a mixer has to look back.
    """
    world = torch.Generator().manual_seed(1000)
    successor = torch.randperm(items, generator=world)
    generator = torch.Generator().manual_seed(seed)

    def histories(count: int) -> Split:
        favourites = torch.rand(count, items, generator=generator).topk(3).indices
        rows = [torch.randint(items, (count,), generator=generator)]
        for _ in range(length):
            pick = torch.randint(3, (count, 1), generator=generator)
            kind = torch.rand(count, generator=generator)
            any_item = torch.randint(items, (count,), generator=generator)
            liked = torch.where(kind < 0.9, favourites.gather(1, pick)[:, 0], any_item)
            rows.append(torch.where(kind < 0.3, successor[rows[-1]], liked))
        found = torch.stack(rows, 1)
        return Split(found[:, :-1], None, found[:, 1:])

    return histories(4096), histories(1024)


def bags(seed: int, instances: int = 40, width: int = 16) -> tuple[Split, Split]:
    """Bags of noisy instances: a label is there if at least two of its kind are.

    Each label asks the bag with `ROWS` queries.
    """
    world = torch.Generator().manual_seed(1001)
    kinds = 2 * torch.randn(LABELS, width, generator=world) / width**0.5
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Split:
        x = torch.randn(count, instances, width, generator=generator)
        present = torch.rand(count, LABELS, generator=generator) < 0.4
        for label in range(LABELS):
            place = torch.rand(count, instances, generator=generator).topk(2).indices
            added = present[:, label, None, None] * kinds[label] * width**0.5
            x = x.scatter_add(1, place[..., None].expand(-1, -1, width), added.expand(-1, 2, -1))
        asked = torch.arange(LABELS).repeat_interleave(ROWS).expand(count, -1)
        return Split(x, asked, present.float())

    return draw(2048), draw(1024)


def reversal(seed: int, length: int = 12, items: int = 10) -> tuple[Split, Split]:
    """A command and symbols; the output is the symbols as they are or in reverse order.

    The context holds the command, the symbols and as many blanks, so that a causal mask shows all
    symbols to the first output and hides the later blanks.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Split:
        symbols = torch.randint(items, (count, length), generator=generator)
        turned = torch.randint(2, (count, 1), generator=generator)
        blanks = torch.full((count, length - 1), items + 2)
        tokens = torch.cat([items + turned, symbols, blanks], 1)
        target = torch.where(turned.bool(), symbols.flip(1), symbols)
        return Split(tokens, turned.new_zeros(count, length), target)

    return draw(4096), draw(1024)


TASKS = (
    Task("digits", "NS", digits, 10, "class", features=1, grid=(8, 8), steps=160, batch=32),
    Task("next item", "CS", next_items, 40, "token", items=40, top=5, steps=250),
    Task(
        "labels of bags",
        "NC",
        bags,
        1,
        "labels",
        features=16,
        steps=200,
        skipped={"match": "needs queries on the grid of the keys"},
    ),
    Task("copy or reverse", "CC", reversal, 10, "token", items=13),
)


class Block(nn.Module):
    """Mixer and MLP, each with a norm before and a residual connection."""

    def __init__(self, mixer: TokenMixer) -> None:
        super().__init__()
        self.mixer = mixer
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor, context: Tensor | None, **words: Any) -> tuple[Tensor, Any]:
        """The tokens, and what the mixer gave."""
        source = None if context is None else self.norms[2](context)
        found = self.mixer(self.norms[0](x), source, **words)
        x = x + found.y
        return x + self.mlp(self.norms[1](x)), (self.mixer, found)


class Net(nn.Module):
    """Embedding, positions, blocks and a linear read-out; only the mixer differs."""

    def __init__(self, task: Task, mixer: str, sample: Split) -> None:
        super().__init__()
        self.task = task
        width = task.features
        self.embed = nn.Linear(width, DIM) if width else nn.Embedding(task.items, DIM)
        count = sample.tokens.shape[1]
        # Instances of a bag have no order.
        self.place = nn.Parameter(PLACES * torch.randn(count, DIM) * (task.loss != "labels"))
        self.place.requires_grad_(task.loss != "labels")
        if sample.queries is not None:
            self.asked = nn.Embedding(LABELS, DIM)
            self.asked_place = nn.Parameter(PLACES * torch.randn(sample.queries.shape[1], DIM))
        self.blocks = nn.ModuleList(
            Block(build(mixer, dim=DIM, num_heads=HEADS, **options_of(mixer, task, count)))
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, task.classes)

    def forward(self, batch: Split) -> tuple[Tensor, Tensor | int]:
        """Logits, and the term that the mixers add to the loss."""
        x, context = self.embed(batch.tokens) + self.place, None
        if batch.queries is not None:
            x, context = self.asked(batch.queries) + self.asked_place, x
        words: dict[str, Any] = {}
        if self.task.grid is not None:
            words["grid"] = self.task.grid
        if self.task.pattern[0] == "C":
            words["mask"] = Causal()
        given = []
        for block in self.blocks:
            x, out = block(x, context, **words)
            given.append(out)
        if self.task.loss == "class":
            x = x.mean(1)
        if self.task.loss == "labels":
            x = x.unflatten(1, (LABELS, ROWS)).mean(2)
        return self.head(self.norm(x)), weighted_aux(given)


def options_of(mixer: str, task: Task, tokens: int) -> dict[str, Any]:
    """Constructor options for a task."""
    accepted = inspect.signature(mixer_class(mixer)).parameters
    sizes = {"size": task.grid, "num_tokens": tokens}
    known = {name: value for name, value in sizes.items() if name in accepted}
    return {**OPTIONS.get(mixer, {}), **known}


def loss_of(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """Mean log loss in nats."""
    if task.loss == "labels":
        return F.binary_cross_entropy_with_logits(logits[..., 0], target)
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def hits(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """Share of right answers, or of targets among the best `task.top` classes."""
    if task.loss == "labels":
        return ((logits[..., 0] > 0) == target.bool()).float().mean()
    return (logits.topk(task.top, -1).indices == target[..., None]).any(-1).float().mean()


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        metrics: On the test samples.
        step_seconds: Mean time of a training step.
    """

    metrics: dict[str, float]
    step_seconds: float


def train(task: Task, mixer: str, seed: int, data: tuple[Split, Split], steps: int) -> Run:
    """Adam with a linear warm-up and a cosine decay, the same for all mixers.

    Args:
        task: What is learned.
        mixer: Name in the registry.
        seed: Of weights and batches.
        data: Training and test samples.
        steps: Training steps.
    """
    known, unseen = data
    torch.manual_seed(seed)
    net = Net(task, mixer, known).train()
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], RATE)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    started = perf_counter()
    for _ in range(steps):
        batch = known.batch(torch.randint(len(known.target), (task.batch,)))
        logits, aux = net(batch)
        adam.zero_grad(set_to_none=True)
        (loss_of(task, logits, batch.target) + aux).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        after_step(net)
        schedule.step()
    seconds = (perf_counter() - started) / steps
    return Run(evaluate(net.eval(), unseen), seconds)


@torch.no_grad()
def evaluate(net: Net, unseen: Split) -> dict[str, float]:
    """Share of hits and log loss."""
    index = torch.arange(len(unseen.target)).split(256)
    logits = torch.cat([net(unseen.batch(part))[0] for part in index])
    found = {
        "share_hit": hits(net.task, logits, unseen.target),
        "log_loss": loss_of(net.task, logits, unseen.target),
    }
    return {name: float(value) for name, value in found.items()}


def composite_index(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over metrics of the distance to the mean of all mixers, in standard deviations.

    Positive is better than the mixers compared. A metric in which all are equal counts as zero.

    Args:
        metrics: By mixer, then by name.
    """
    index = dict.fromkeys(metrics, 0.0)
    names = list(next(iter(metrics.values()), {}))
    for name in names:
        values = [found[name] for found in metrics.values()]
        middle, spread = fmean(values), pstdev(values)
        sign = -1 if name in LESS_IS_BETTER else 1
        for mixer, found in metrics.items():
            distance = (found[name] - middle) / spread if spread else 0.0
            index[mixer] += sign * distance / len(names)
    return index


def run(setting: Setting) -> Outcome:
    """Train every mixer on the tasks of its patterns."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(replace(setting, threads=1), list(MIXERS))
    finally:
        torch.set_num_threads(before)


def _run(setting: Setting, names: Sequence[str]) -> Outcome:
    seeds = setting.pick(3, 1)
    outcome = Outcome()
    indices: dict[str, list[float]] = {}
    for task in TASKS:
        able = [n for n in names if task.pattern in mixer_class(n).capabilities.patterns]
        able = [name for name in able if name not in task.skipped]
        # Mixers take turns, so that a slow minute of the machine hits all of them.
        steps = setting.pick(task.steps, 2)
        rounds = []
        for seed in range(seeds):
            known, unseen = task.draw(seed)
            data = known, unseen.batch(torch.arange(setting.pick(len(unseen.target), 64)))
            rounds.append({name: train(task, name, seed, data, steps) for name in able})
        found = results_of(task, rounds)
        outcome.results += found
        for result in found:
            indices.setdefault(result.variant, []).append(result.extra["composite_index"])
        outcome.notes += [
            f"{name} is no part of {task.name}: {why}" for name, why in task.skipped.items()
        ]
    ranking = sorted(indices, key=lambda name: -fmean(indices[name]))
    shown = [f"{name} {fmean(indices[name]):+.2f} ({len(indices[name])})" for name in ranking]
    outcome.notes += [
        f"composite index, mean over the tasks of a mixer (their number): {', '.join(shown)}",
        f"{LAYERS} blocks of width {DIM} with {HEADS} heads, Adam at {RATE:g}, {seeds} seeds; one "
        "recipe for all and nothing tuned, so this ranks how "
        "fast a mixer learns a small task, not what it reaches on large ones",
        "share hit: right answers; for next item, targets among the best five",
        "a mixer is compared with those on the same task only; indices of mixers with different "
        "tasks are not comparable",
    ]
    return outcome


def results_of(task: Task, rounds: Sequence[Mapping[str, Run]]) -> list[Result]:
    """One result for each mixer: time of a step, metrics, their spread and the index."""
    names = list(rounds[0])
    means: dict[str, dict[str, float]] = {}
    spreads: dict[str, dict[str, float]] = {}
    for name in names:
        by_metric = {
            metric: [found[name].metrics[metric] for found in rounds]
            for metric in rounds[0][name].metrics
        }
        means[name] = {metric: fmean(values) for metric, values in by_metric.items()}
        spreads[name] = {f"{m}_std": pstdev(values) for m, values in by_metric.items()}
    index = composite_index(means)
    full = FULL if FULL in names else names[0]
    return [
        Result(
            f"{task.pattern} {task.name}",
            name,
            full,
            "s/step",
            Spread.of([found[name].step_seconds for found in rounds]),
            Spread.of([found[full].step_seconds / found[name].step_seconds for found in rounds]),
            len(rounds),
            {"composite_index": index[name], **means[name], **spreads[name]},
        )
        for name in names
    ]
