"""Multi-head attention of learned queries: folded, as ACMIL computes it, and written out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases.acmil_bags import loss
from benchmarks.harness import Outcome, Setting, Target, Variant, compare, find
from manyhead.acmil.bag_output import MILOutput, one_bag
from manyhead.acmil.model import ACMIL, ACMILConfig, PooledValue

LEAST = 6.0


def run(setting: Setting) -> Outcome:
    """One bag, five queries, eight heads, forward and backward in evaluation mode."""
    setting = replace(setting, threads=1)
    patches, dim = setting.pick((10_000, 512), (2000, 512))
    torch.manual_seed(0)
    config = ACMILConfig(feature_dim=2 * dim, dim=dim, attention="multihead", num_masked=0)
    net = ACMIL(config).to(setting.device).eval()
    features = torch.randn(patches, 2 * dim, device=setting.device)
    bounds = one_bag(features)
    label = torch.ones(1, dtype=torch.int64, device=setting.device)

    def folded() -> None:
        net.zero_grad(set_to_none=True)
        loss(net, features, bounds, label).backward()

    def unfolded() -> None:
        net.zero_grad(set_to_none=True)
        terms = net.losses(written_out(net, features), label, cu_seqlens=bounds)
        torch.stack(list(terms.values())).sum().backward()

    _check(net, features)
    group = f"{patches:,} patches, width {dim}"
    variants = [Variant("written out", unfolded), Variant("folded", folded)]
    results = compare(group, variants, setting, repeats=setting.pick(5, 3))
    ratio = find(results, group, "folded").ratio.median
    note = (
        f"features of width {2 * dim}, five queries, eight heads, dropout and masking off, "
        "float32, one thread; both give the same logits, which is checked first"
    )
    claim = f"folded over written out, {group}, forward and backward"
    return Outcome(results, [Target(claim, LEAST, ratio, "x")], [note])


def written_out(net: ACMIL, features: Tensor) -> MILOutput:
    """The same network with keys and values of every patch, as equations have it."""
    attention = net.attention
    heads, dim = net.config.num_heads, net.config.width
    x = net.reduction(features)
    maps, vectors = [], []
    for number, latent in enumerate(attention.queries):
        query = attention.query[number](latent).view(heads, 1, -1)
        key = attention.key[number](x).view(len(x), heads, -1).transpose(0, 1)
        maps.append(query @ key.mT * (dim / heads) ** -0.5)
        vectors.append(_attended(attention.branches[number], maps[-1].softmax(-1), x))
    mean = torch.stack([scores.softmax(-1) for scores in maps]).mean(0)
    slide = _attended(attention.bag, mean, x)
    branch_logits = [head(v) for head, v in zip(net.branch_heads, vectors, strict=True)]
    scores = torch.stack([found[:, 0].T for found in maps], 1)
    return MILOutput(net.slide_head(slide), torch.stack(branch_logits, 1), scores, slide)


def _attended(part: PooledValue, weights: Tensor, x: Tensor) -> Tensor:
    value = part.value(x).view(len(x), part.num_heads, -1).transpose(0, 1)
    joined = (weights @ value).transpose(0, 1).reshape(1, -1)
    return part.norm(part.dropout(part.output(joined)))


@torch.no_grad()
def _check(net: ACMIL, features: Tensor) -> None:
    ours, plain = net(features), written_out(net, features)
    torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.branch_logits, plain.branch_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.attention, plain.attention, rtol=1e-4, atol=1e-4)
