"""Which kernel suits which call of `attend`, and what each kernel cannot do: two tables.

Neither looks at a tensor, so both can be read and tested for a device that is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

MaskKind = Literal["none", "causal", "keys", "structured", "dense"]

# Forward and backward on one AVX-512 thread, torch 2.13, batch 1024, 2 heads of width 32, eager
# against SDPA in ms: 7 keys 10.0 : 10.8, 23 keys 27.7 : 35.2, 39 keys 67.5 : 57.9. Without
# gradients SDPA wins or ties at every size (7 keys: 4.4 : 2.7).
EAGER_TRAINING_KEYS = 32

# The thresholds below come from documentation and from public measurements, not from our own.
SHORT_KEYS = 64  # up to here a call is bound by its launch, and eager is no mistake
PACK_KEYS = 512
PACK_PADDING = 0.2  # share of the keys
LONG_KEYS = 1024  # from here on skipping blocks of 128 by 128 pays
FLEX_WIDTH = 16  # of a head, at least
FLASH_WIDTH = 256  # at most
VARLEN_CAPABILITY = (8, 0)
VARLEN_STEP = 8

# CUDA launches one grid row per batch element, and a grid has at most 65,535 of them.
CUDA_BATCH_LIMIT = 65_535

STRUCTURED = ("causal", "window", "ids", "grid")
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Call:
    """All that decides about the kernel of a call.

    Args:
        device: `cpu`, `cuda`, `mps`.
        capability: Compute capability of a CUDA device, outside graphs.
        dtype: Number format of the queries.
        batch: Batch elements; 0 while a graph is exported or compiled, where it may be symbolic.
        queries: Queries.
        keys: Keys.
        head_dim: Width of queries and keys.
        value_dim: Width of values.
        mask: `none`; `causal` over as many keys as queries; `keys` where only padding is hidden;
            `structured` for windows and ids; `dense`.
        packable: Whether the mask is made of padding, causality and windows alone.
        padding: Share of hidden keys, known for `keys` on CUDA.
        bias: Whether there is a bias.
        bias_grad: Whether it needs a gradient.
        score_mod: Whether there is a function of the scores.
        dropout: Whether weights are dropped.
        lse: Whether the log of the softmax denominator is wanted.
        grad: Whether queries, keys or values need a gradient.
        deterministic: Whether torch has to use deterministic algorithms.
        compiling: Whether a graph is traced.
        exporting: Whether it is traced to be exported.
        has_varlen: Whether torch has a kernel for packed sequences.
    """

    device: str = "cpu"
    capability: tuple[int, int] = (0, 0)
    dtype: torch.dtype = torch.float32
    batch: int = 1
    queries: int = 1
    keys: int = 1
    head_dim: int = 64
    value_dim: int = 64
    mask: MaskKind = "none"
    packable: bool = True
    padding: float = 0.0
    bias: bool = False
    bias_grad: bool = False
    score_mod: bool = False
    dropout: bool = False
    lse: bool = False
    grad: bool = False
    deterministic: bool = False
    compiling: bool = False
    exporting: bool = False
    has_varlen: bool = True


class Rule(NamedTuple):
    """A row of `BACKEND_RULES`.

    Args:
        device: `cpu`, `cuda` or `any`.
        case: The calls it is for, in words.
        holds: The same as a condition.
        kernel: What suits them best; `flash` and `efficient` are forms of `sdpa`.
        why: The reason; where `instead_of` is named, what that one does.
        instead_of: A kernel that would be able to, and is passed over for this reason.
        remedy: What the user can change about it.
    """

    device: str
    case: str
    holds: Callable[[Call], bool]
    kernel: str
    why: str
    instead_of: str = ""
    remedy: str = ""


class Limit(NamedTuple):
    """Something that a kernel cannot do.

    Args:
        kernel: Its name.
        holds: The calls that ask for it.
        reason: What it cannot do, after its name.
        remedy: What the user can change about it.
    """

    kernel: str
    holds: Callable[[Call], bool]
    reason: str
    remedy: str = ""


NO_DROPOUT = "set the dropout of the attention weights to 0"
USE_BF16 = "use bfloat16, for instance under autocast"
UNFUSED = "falls back to its unfused form"

# The first row that holds, and whose kernel is able to, decides. Windows and groups that tile the
# sequence are faster than any row when they are moved into the batch, as the mixers for grids do.
BACKEND_RULES: tuple[Rule, ...] = (
    Rule(
        "cpu",
        "a score_mod",
        lambda call: call.score_mod,
        "eager",
        "compiles for about a minute on CPU and is slower there than SDPA with the same bias",
        instead_of="flex",
    ),
    Rule(
        "cpu",
        "dropout",
        lambda call: call.dropout,
        "eager",
        f"{UNFUSED} with dropout on CPU",
        instead_of="sdpa",
        remedy=NO_DROPOUT,
    ),
    Rule(
        "cpu",
        "values of another width than keys",
        lambda call: call.value_dim != call.head_dim,
        "eager",
        f"{UNFUSED} with another value width on CPU",
        instead_of="sdpa",
        remedy="give values the width of the keys",
    ),
    Rule(
        "cpu",
        "a bias that learns",
        lambda call: call.bias_grad,
        "eager",
        f"{UNFUSED} for a bias gradient on CPU",
        instead_of="sdpa",
        remedy="freeze the bias, or shorten the sequence",
    ),
    Rule(
        "cpu",
        f"training over at most {EAGER_TRAINING_KEYS} keys",
        # No other size is looked at: one that is symbolic in a graph would become a guard.
        lambda call: call.grad and call.keys <= EAGER_TRAINING_KEYS,
        "eager",
        f"trains slower with {EAGER_TRAINING_KEYS} keys or fewer on CPU",
        instead_of="sdpa",
    ),
    Rule(
        "cpu",
        "16 bits",
        lambda call: call.dtype in SIXTEEN_BIT,
        "sdpa",
        "fused, in float32 inside where the CPU has no matrix units for the format",
    ),
    Rule("cpu", "everything else", lambda _: True, "sdpa", "the fused CPU kernel"),
    Rule(
        "cuda",
        f"key padding of more than {PACK_PADDING:.0%} over {PACK_KEYS} keys or more",
        lambda call: call.mask == "keys" and call.keys >= PACK_KEYS and call.padding > PACK_PADDING,
        "varlen",
        "computes no padding",
    ),
    Rule(
        "cuda",
        f"windows or ids over {LONG_KEYS} keys or more",
        lambda call: call.mask == "structured" and call.keys >= LONG_KEYS,
        "flex",
        "skips the blocks that nothing sees",
    ),
    Rule(
        "cuda",
        "a score_mod",
        lambda call: call.score_mod,
        "flex",
        "applies it inside the kernel",
    ),
    Rule(
        "cuda",
        f"lse of {LONG_KEYS} keys or more",
        lambda call: call.lse and call.keys >= LONG_KEYS,
        "flex",
        "returns it without a second pass",
    ),
    Rule(
        "cuda",
        f"a bias that learns, at most {SHORT_KEYS} keys",
        lambda call: call.bias_grad and call.keys <= SHORT_KEYS,
        "eager",
        f"is bound by its launch with {SHORT_KEYS} keys or fewer",
        instead_of="sdpa",
    ),
    Rule(
        "cuda",
        f"inside torch.compile, at most {SHORT_KEYS} keys",
        lambda call: call.compiling and call.keys <= SHORT_KEYS,
        "eager",
        f"is bound by its launch with {SHORT_KEYS} keys or fewer",
        instead_of="sdpa",
    ),
    Rule(
        "cuda",
        "no mask, or causal with as many keys as queries",
        lambda call: call.mask in ("none", "causal") and not call.bias,
        "flash",
        "the fastest kernel: flash, or cuDNN's",
    ),
    Rule(
        "cuda",
        "everything else",
        lambda _: True,
        "efficient",
        "takes any mask or bias, and float32",
    ),
    Rule("any", "other devices", lambda _: True, "sdpa", "the device's own kernel"),
)

LIMITS: tuple[Limit, ...] = (
    Limit("sdpa", lambda call: call.score_mod, "takes no score_mod", "write it as a bias"),
    Limit("sdpa", lambda call: call.lse, "returns no lse"),
    Limit("sdpa", lambda call: call.keys == 0, "needs at least one key"),
    Limit(
        "sdpa",
        lambda call: call.device == "cuda" and call.batch > CUDA_BATCH_LIMIT,
        f"takes at most {CUDA_BATCH_LIMIT} batch elements on CUDA",
        "use a smaller batch",
    ),
    Limit(
        "sdpa",
        lambda call: call.device == "cuda" and call.bias_grad and not call.grad,
        "gives no gradient to a bias alone on CUDA",
    ),
    Limit(
        "sdpa",
        lambda call: call.device == "cuda" and call.bias_grad and call.deterministic,
        "sums a bias gradient in random order on CUDA",
        "turn off deterministic algorithms",
    ),
    Limit("flash", lambda call: call.dtype not in SIXTEEN_BIT, "takes 16 bits only", USE_BF16),
    Limit("flash", lambda call: call.head_dim > FLASH_WIDTH, f"is for heads up to {FLASH_WIDTH}"),
    Limit(
        "flash",
        lambda call: call.value_dim != call.head_dim,
        "needs values as wide as keys",
        "give values the width of the keys",
    ),
    Limit("flex", lambda call: call.exporting, "is no part of an exported graph"),
    Limit("flex", lambda call: call.dropout, "has no dropout", NO_DROPOUT),
    Limit(
        "flex",
        lambda call: min(call.head_dim, call.value_dim) < FLEX_WIDTH,
        f"needs heads of width {FLEX_WIDTH} or more",
    ),
    Limit(
        "flex",
        lambda call: call.keys == 0 or call.queries == 0,
        "needs at least one query and one key",
    ),
    Limit("flex", lambda call: call.dtype == torch.float64, "takes no float64"),
    Limit(
        "flex",
        lambda call: call.device == "cpu" and (call.grad or call.bias_grad),
        "has no gradients on CPU",
    ),
    Limit("flex", lambda call: call.device == "cpu" and call.lse, "returns no lse on CPU"),
    Limit("flex", lambda call: call.device not in ("cpu", "cuda"), "runs on CPU and CUDA only"),
    Limit(
        "flex",
        lambda call: call.bias_grad and call.deterministic,
        "sums a bias gradient in random order",
        "turn off deterministic algorithms",
    ),
    Limit("varlen", lambda call: call.exporting, "is no part of an exported graph"),
    Limit("varlen", lambda call: call.compiling, "packs by the data, which a graph cannot"),
    Limit("varlen", lambda call: call.bias or call.score_mod, "takes no bias and no score_mod"),
    Limit("varlen", lambda call: call.dropout, "has no dropout", NO_DROPOUT),
    Limit(
        "varlen",
        lambda call: not call.packable,
        "takes KeyPadding, Causal and SlidingWindow only, and these joined by &",
    ),
    Limit(
        "varlen",
        lambda call: call.device == "cuda" and call.dtype not in SIXTEEN_BIT,
        "takes 16 bits only",
        USE_BF16,
    ),
    Limit(
        "varlen",
        lambda call: call.device == "cuda" and call.capability < VARLEN_CAPABILITY,
        "needs a CUDA device of compute capability 8.0",
    ),
    Limit(
        "varlen",
        lambda call: call.device == "cuda" and not call.has_varlen,
        "needs torch 2.10 or newer",
        "update torch",
    ),
    Limit(
        "varlen",
        lambda call: call.device == "cuda" and call.value_dim != call.head_dim,
        "needs values as wide as keys",
    ),
    Limit(
        "varlen",
        lambda call: (
            call.device == "cuda"
            and (call.head_dim % VARLEN_STEP != 0 or call.head_dim > FLASH_WIDTH)
        ),
        f"needs a head width that is a multiple of {VARLEN_STEP} up to {FLASH_WIDTH}",
    ),
    Limit("varlen", lambda call: call.device not in ("cpu", "cuda"), "runs on CPU and CUDA only"),
)
