"""Mixers by name. Reading this table imports nothing; a mixer is imported when it is asked for."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from manyhead_core.app import find
from manyhead_core.attention.mixer import Layout, Pattern, TokenMixer
from manyhead_core.errors import ConfigError

_PLACE = "manyhead_core.attention.mixers"
MIXERS: dict[str, str] = {
    "softmax": f"{_PLACE}.softmax:Attention",
    "moh": f"{_PLACE}.moh:MixtureOfHeads",
    "rcmha": f"{_PLACE}.rcmha:RelativeConvAttention",
    "linear": f"{_PLACE}.linear:LinearAttention",
    "inline": f"{_PLACE}.inline:InlineAttention",
    "spectral": f"{_PLACE}.spectral:SpectralGate",
    "dynamic_mask": f"{_PLACE}.dynamic_mask:DynamicMaskAttention",
    "aggregated": f"{_PLACE}.aggregated:AggregatedAttention",
    "aggregated_full": f"{_PLACE}.aggregated:AggregatedFullAttention",
    "bra": f"{_PLACE}.bra:BiLevelRoutingAttention",
    "lsda": f"{_PLACE}.lsda:LongShortAttention",
    "halo": f"{_PLACE}.halo:HaloAttention",
    "neighborhood": f"{_PLACE}.neighborhood:NeighborhoodAttention",
    "group": f"{_PLACE}.group:GroupAttention",
    "gaam": f"{_PLACE}.gaam:GaussianAttention",
    "shsa": f"{_PLACE}.shsa:SingleHeadAttention",
    "ulsam": f"{_PLACE}.ulsam:SubspaceAttention",
    "sparsifiner": f"{_PLACE}.sparsifiner:Sparsifiner",
    "routing": f"{_PLACE}.routing:RoutingAttention",
    "smha": f"{_PLACE}.smha:SelectiveAttention",
    "match": f"{_PLACE}.match:MatchAttention",
    "msa_conv": f"{_PLACE}.msa_conv:ConvAttention",
    "glca": f"{_PLACE}.glca:GlobalLocalCrossAttention",
    "conditional_cross": f"{_PLACE}.conditional_cross:ConditionalCrossAttention",
    "pooled_cross": f"{_PLACE}.pooled_cross:PooledCrossAttention",
    "summary": f"{_PLACE}.summary:SummaryAttention",
    "label_cross": f"{_PLACE}.label_cross:LabelCrossAttention",
    "low_rank_pool": f"{_PLACE}.low_rank_pool:LowRankPooling",
    "realloc": f"{_PLACE}.realloc:ReallocationAttention",
    "mvpa": f"{_PLACE}.mvpa:ParallelAttention",
    "identity": f"{_PLACE}.ablations:Identity",
    "uniform": f"{_PLACE}.ablations:Uniform",
    "static_qk": f"{_PLACE}.ablations:StaticQueryKey",
    "position_qk": f"{_PLACE}.ablations:PositionQueryKey",
    "random_qk": f"{_PLACE}.ablations:RandomQueryKey",
    "linear_qk": f"{_PLACE}.ablations:LinearQueryKey",
}


def mixer_class(name: str) -> type[TokenMixer]:
    """The class of a mixer.

    Raises:
        UserError: There is no such mixer.
    """
    kind: type[TokenMixer] = pkgutil.resolve_name(MIXERS[find(name, MIXERS, "mixer")])
    return kind


def build(mixer: str | Mapping[str, Any], **options: Any) -> TokenMixer:
    """Build a mixer from its name, or from a mapping with `name` and options.

    Args:
        mixer: `"moh"`, or `{"name": "bra", "num_windows": 7, "topk": 4}`.
        **options: `dim`, `num_heads` and the mixer's own options; those of the mapping win.

    Raises:
        UserError: There is no such mixer.
        ConfigError: An option is unknown to it.
    """
    given = dict(mixer) if isinstance(mixer, Mapping) else {"name": mixer}
    kind = mixer_class(given.pop("name", ""))
    options |= given
    accepted = list(inspect.signature(kind).parameters)
    for name in options:
        if name not in accepted:
            raise ConfigError(
                f"{kind.name}: unknown option {name!r}; it accepts {', '.join(accepted)}"
            )
    return kind(**options)


def available(pattern: Pattern | None = None, layout: Layout | None = None) -> list[str]:
    """Names of the mixers that support a pattern and a layout."""
    found = []
    for name in MIXERS:
        able = mixer_class(name).capabilities
        if (pattern is None or pattern in able.patterns) and (
            layout is None or layout in able.layouts
        ):
            found.append(name)
    return found


def supporting(query: str) -> list[str]:
    """Names of the mixers with a capability, such as `pattern='CS'` or `maps=True`."""
    kind, _, value = query.partition("=")
    if kind == "pattern":
        wanted = value.strip("'\"")
        return [n for n in MIXERS if wanted in mixer_class(n).capabilities.patterns]
    if kind == "mask":
        return [n for n in MIXERS if mixer_class(n).capabilities.mask == "any"]
    return [n for n in MIXERS if getattr(mixer_class(n).capabilities, kind)]
