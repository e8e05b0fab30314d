"""ACMIL: attention-challenging multiple instance learning for whole-slide images.

Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image
Classification", ECCV 2024, arXiv:2311.07125. Read from top to bottom it follows the paper's figure:
patch features are reduced, several attention branches pool them, the strongest patches are masked
at random while training, every branch and their mean are classified.

Patches carry no position, so their order does not matter. Many bags are one packed batch: the
patches of all bags one below the other, and `cu_seqlens` with the places where the bags start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyhead.acmil.bag_output import MILOutput, Target, one_bag
from manyhead.acmil.losses import branch_loss, diversity_loss, target_loss
from manyhead.acmil.masking import mask_top
from manyhead.acmil.streaming import in_chunks, weighted_sums
from manyhead_core.attention.pool import pool
from manyhead_core.errors import ConfigError
from manyhead_core.hub.pretrained import PretrainedModel

# Width after the reduction for the feature widths of published runs; else half, in eights.
WIDTHS = {384: 128, 512: 256, 768: 384, 1024: 512, 1536: 768}
# A batch of more patches is computed in chunks, twice, so that it needs little memory.
STREAM_FROM, CHUNK = 2**17, 2**14


@dataclass(frozen=True, kw_only=True)
class ACMILConfig:
    """Architecture of ACMIL; with one branch and no masking, of ABMIL.

    Args:
        feature_dim: Width of a patch feature. It comes from the data.
        dim: Width after the reduction; None takes the published one, or half of `feature_dim`.
        hidden_dim: Width of gated attention.
        num_classes: Classes. It comes from the data.
        target: What a slide is labelled with: one of several `classes`; `ordinal`, classes in
            order; `regression`, a number; `survival`, a time that may be censored.
        attention: `gated` is ACMIL_GA of the paper; `multihead` ACMIL_MHA, learned queries.
        num_branches: M, attention branches.
        num_heads: Heads of `multihead`; divides `dim`.
        num_masked: K, how many of the most attended patches may be masked in training.
        mask_share: p, the part of them that is.
        num_residual: Residual blocks after the reduction.
        dropout: Probability of dropping an entry of a pooled vector of `multihead`.
    """

    feature_dim: int = 1024
    dim: int | None = None
    hidden_dim: int = 128
    num_classes: int = 2
    target: Target = "classes"
    attention: Literal["gated", "multihead"] = "gated"
    num_branches: int = 5
    num_heads: int = 8
    num_masked: int = 10
    mask_share: float = 0.6
    num_residual: int = 0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        for name in ("feature_dim", "hidden_dim", "num_branches", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.target in ("classes", "ordinal") and self.num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {self.num_classes}")
        if self.attention == "multihead" and self.width % self.num_heads:
            raise ConfigError(
                f"dim: {self.width} is no multiple of num_heads={self.num_heads}; "
                f"use {self.num_heads * max(1, round(self.width / self.num_heads))}"
            )
        if self.num_masked < 0 or self.num_residual < 0:
            raise ConfigError(
                f"num_masked, num_residual: must be 0 or more, got {self.num_masked} and "
                f"{self.num_residual}"
            )
        if not 0 <= self.mask_share <= 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"mask_share must be in [0, 1] and dropout in [0, 1), got {self.mask_share} and "
                f"{self.dropout}"
            )

    @property
    def width(self) -> int:
        """Width after the reduction."""
        if self.dim is not None:
            return self.dim
        return WIDTHS.get(self.feature_dim, max(8, 8 * round(self.feature_dim / 16)))

    @property
    def num_outputs(self) -> int:
        """Numbers that a classifier gives: the thresholds between ordered classes are one less."""
        if self.target == "classes":
            return self.num_classes
        return self.num_classes - 1 if self.target == "ordinal" else 1


class ACMIL(PretrainedModel[ACMILConfig]):
    """Slide classifier with several attention branches, section 3 of the paper.

    Args:
        config: Architecture.
    """

    app = "acmil"
    config_class = ACMILConfig
    medical = True

    def __init__(self, config: ACMILConfig) -> None:
        super().__init__()
        self.config = config
        width, branches = config.width, config.num_branches
        self.reduction = Reduction(config.feature_dim, width, config.num_residual)
        self.attention: GatedAttention | LatentAttention = (
            GatedAttention(width, config.hidden_dim, branches)
            if config.attention == "gated"
            else LatentAttention(width, config.num_heads, branches, config.dropout)
        )
        self.branch_heads = nn.ModuleList(
            nn.Linear(width, config.num_outputs) for _ in range(branches)
        )
        self.slide_head = nn.Linear(width, config.num_outputs)

    def forward(
        self,
        features: Tensor,
        cu_seqlens: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        mask_draws: Tensor | None = None,
    ) -> MILOutput:
        """Classify bags.

        Args:
            features: Patches of all bags, `(total, feature_dim)`, 16 bits are welcome; or a padded
                batch, `(bags, patches, feature_dim)`.
            cu_seqlens: Where the bags of a packed batch start, and last the total, int
                `(bags + 1,)`; None is one bag.
            lengths: Patches of each bag of a padded batch, `(bags,)`; None is all.
            mask_draws: Uniform numbers that choose the masked patches in training,
                `(bags, branches * heads, num_masked)`; None draws them.
        """
        if features.dim() == 2 and cu_seqlens is None:
            cu_seqlens = one_bag(features)
        bounds = {"cu_seqlens": cu_seqlens, "lengths": lengths}
        if cu_seqlens is not None and len(features) > STREAM_FROM:
            return self._streamed(features, cu_seqlens, mask_draws)
        reduced = self.reduction(features)
        scores = self._masked(self.attention(reduced), mask_draws, **bounds)
        return self._classified(pool(scores, reduced, **bounds).out, scores)

    def _streamed(
        self, features: Tensor, cu_seqlens: Tensor, mask_draws: Tensor | None
    ) -> MILOutput:
        """The same in chunks of patches, for bags that fill the memory."""
        scores = in_chunks(lambda x: self.attention(self.reduction(x)), features, CHUNK)
        scores = self._masked(scores, mask_draws, cu_seqlens=cu_seqlens, lengths=None)
        weights = pool(scores, scores[:, :0], cu_seqlens=cu_seqlens).weights
        sums = weighted_sums(self.reduction, features, weights, cu_seqlens, CHUNK)
        return self._classified(sums, scores)

    def _classified(self, sums: Tensor, scores: Tensor) -> MILOutput:
        """Logits of pooled patches, `(bags, branches * heads, dim)`."""
        # Under autocast the logits stay in float32.
        with torch.autocast(sums.device.type, enabled=False):
            branches, slide = self.attention.pooled(sums.float())
            heads = zip(self.branch_heads, branches.unbind(1), strict=True)
            branch_logits = torch.stack([head(x) for head, x in heads], 1)
            logits = self.slide_head(slide)
        attention = scores.unflatten(-1, (self.config.num_branches, -1))
        return MILOutput(logits, branch_logits, attention, slide)

    def losses(
        self,
        output: MILOutput,
        label: Tensor,
        *,
        cu_seqlens: Tensor,
        event: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of the training loss by name, equation 8 of the paper: their sum is minimised.

        Args:
            output: What `forward` gave.
            label: Of the bags, `(bags,)`.
            cu_seqlens: Where the bags start, and last the total, `(bags + 1,)`.
            event: As in `target_loss`.
            class_weights: As in `target_loss`.
        """
        assert output.branch_logits is not None  # noqa: S101
        assert output.attention is not None  # noqa: S101
        about: dict[str, Any] = {"event": event, "class_weights": class_weights}
        target = self.config.target
        return {
            "slide": target_loss(output.logits, label, target, **about),
            "branch": branch_loss(output.branch_logits, label, target, **about),
            "diversity": diversity_loss(output.attention, cu_seqlens=cu_seqlens),
        }

    def _masked(
        self,
        scores: Tensor,
        draws: Tensor | None,
        *,
        cu_seqlens: Tensor | None,
        lengths: Tensor | None,
    ) -> Tensor:
        """Scores with some of the highest masked while training, section 3.3."""
        config = self.config
        if not (self.training and config.num_masked):
            return scores
        if cu_seqlens is not None:
            starts, counts = cu_seqlens[:-1], cu_seqlens.diff()
        else:
            bags, patches = scores.shape[:2]
            starts = torch.arange(bags, device=scores.device) * patches
            counts = torch.full_like(starts, patches) if lengths is None else lengths
        masked = mask_top(
            scores.reshape(-1, scores.shape[-1]),
            starts,
            counts,
            candidates=config.num_masked,
            share=config.mask_share,
            draws=draws,
        )
        return masked.view(scores.shape)

    def example_inputs(self, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """A padded batch of random bags of 8 to 12 patches.

        Args:
            batch: Number of bags.
            seed: Seed of the draw.
        """
        generator = torch.Generator().manual_seed(seed)
        return {
            "features": torch.randn(batch, 12, self.config.feature_dim, generator=generator),
            "lengths": torch.randint(8, 13, (batch,), generator=generator),
        }

    def named_logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits for inputs by the names of `example_inputs`."""
        return self(inputs["features"], lengths=inputs["lengths"]).logits

    def reset_head(self) -> None:
        """Draw the classifiers anew, for training on another label."""
        for head in (*self.branch_heads, self.slide_head):
            head.reset_parameters()


class Reduction(nn.Module):
    """Patch features in the width of the network.

    Args:
        feature_dim: Width of a patch feature.
        dim: Width of the result.
        num_residual: Residual blocks.
    """

    def __init__(self, feature_dim: int, dim: int, num_residual: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, dim, bias=False)
        self.blocks = nn.ModuleList(ResidualBlock(dim) for _ in range(num_residual))

    def forward(self, features: Tensor) -> Tensor:
        """`(..., feature_dim)` of any float type to `(..., dim)`."""
        x = F.relu(self.linear(features.to(self.linear.weight.dtype)))
        for block in self.blocks:
            x = block(x)
        return x


class ResidualBlock(nn.Module):
    """Two layers beside an identity.

    Args:
        dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, dim, bias=False)
        self.second = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` to `(..., dim)`."""
        return x + F.relu(self.second(F.relu(self.first(x))))


class GatedAttention(nn.Module):
    """Scores of Ilse et al. 2018, equation 9; the branches share the hidden layer.

    Args:
        dim: Width of a patch.
        hidden_dim: Width of the hidden layer.
        num_branches: Scores per patch.
    """

    def __init__(self, dim: int, hidden_dim: int, num_branches: int) -> None:
        super().__init__()
        self.content = nn.Linear(dim, hidden_dim)
        self.gate = nn.Linear(dim, hidden_dim)
        self.score = nn.Linear(hidden_dim, num_branches)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` to scores `(..., branches)`."""
        return self.score(self.content(x).tanh() * self.gate(x).sigmoid())

    def pooled(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the branches, `(bags, branches, dim)`, and of the bags, `(bags, dim)`.

        The mean of the maps times the patches is the mean of the branches, so no second pass over
        the patches is needed.
        """
        return sums, sums.mean(1)


class LatentAttention(nn.Module):
    """Multi-head attention of one learned query per branch to the patches, ACMIL_MHA.

    Keys and values of the patches are never formed: a query is the same for all slides, so it is
    folded with the key projection into one vector per head, and as weights sum to one the value
    projection is applied to the pooled patch instead of to every patch.

    Args:
        dim: Width of a patch.
        num_heads: Heads.
        num_branches: Queries.
        dropout: Probability of dropping an entry of a pooled vector.
        bag: Whether the vector of a bag has projections of its own; else it is the branches' mean.
    """

    def __init__(
        self, dim: int, num_heads: int, num_branches: int, dropout: float, *, bag: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.num_branches = num_heads, num_branches
        self.queries = nn.Parameter(torch.randn(num_branches, dim) * 1e-6)
        self.query = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_branches))
        self.key = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_branches))
        self.branches = nn.ModuleList(
            PooledValue(dim, num_heads, dropout) for _ in range(num_branches)
        )
        self.bag = PooledValue(dim, num_heads, dropout) if bag else None

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` to scores `(..., branches * heads)`."""
        folded = [
            _fold(query(latent), key, self.num_heads)
            for latent, query, key in zip(self.queries, self.query, self.key, strict=True)
        ]
        vectors, offsets = (torch.cat(part) for part in zip(*folded, strict=True))
        return F.linear(x, vectors, offsets)

    def pooled(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the branches, `(bags, branches, dim)`, and of the bags, `(bags, dim)`.

        The map of the bag is the mean of the branches', so their sums are reused.
        """
        by_branch = sums.unflatten(1, (self.num_branches, self.num_heads))
        values = zip(self.branches, by_branch.unbind(1), strict=True)
        branches = torch.stack([value(x) for value, x in values], 1)
        whole = branches.mean(1) if self.bag is None else self.bag(by_branch.mean(1))
        return branches, whole


def _fold(query: Tensor, key: nn.Module, num_heads: int) -> tuple[Tensor, Tensor]:
    """Vector `(heads, dim)` and offset `(heads,)` so that a patch's score is a product with it."""
    assert isinstance(key, nn.Linear)  # noqa: S101 - for the type checker
    scaled = query.unflatten(0, (num_heads, -1)) * (len(query) / num_heads) ** -0.5
    weight = key.weight.unflatten(0, (num_heads, -1))
    vectors = (scaled[:, None] @ weight)[:, 0]
    return vectors, (scaled * key.bias.unflatten(0, (num_heads, -1))).sum(-1)


class PooledValue(nn.Module):
    """Value and output projection of patches that are pooled already, one sum per head.

    Args:
        dim: Width.
        num_heads: Heads.
        dropout: Probability of dropping an entry of the result.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, sums: Tensor) -> Tensor:
        """`(bags, heads, dim)` to `(bags, dim)`."""
        weight = self.value.weight.unflatten(0, (self.num_heads, -1))
        values = (weight @ sums[..., None])[..., 0].flatten(1) + self.value.bias
        return self.norm(self.dropout(self.output(values)))
