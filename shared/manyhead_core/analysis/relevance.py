"""Relevance propagation through convolutional models: which pixels a logit comes from.

Bach et al., PLOS ONE 2015. Written as a change of the backward pass: relevance of an input is the
input times its changed gradient, so everything that is linear for the input at hand, such as
convolutions, rectifiers, sums and averages, keeps the gradient it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from manyhead_core.analysis.run import evaluating
from manyhead_core.attention.capture import attention_sites, edit_weights
from manyhead_core.attention.layer import Attend
from manyhead_core.errors import ConfigError

STABILISER = 1e-9
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)
# Rectifiers need no rule: their gradient already passes relevance on unchanged.
ACTIVATIONS = (nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus, nn.Hardswish)


def relevance(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Tensor | None = None,
    *,
    fixed: Sequence[str] = (),
) -> Tensor:
    """Relevance of every input entry for one logit; on a net without biases it sums to the logit.

    Linear layers follow the z+ rule: relevance goes to an input in proportion to its positive
    contribution, biases take no part; a unit without a positive contribution keeps what it has.
    Convolutions and max-pooling follow the z rule: in proportion
    to the contribution, of which the maximum is the only one in pooling; a bias keeps its share.
    The weights of attention are constants, norms of layers are a constant scale, and an activation
    other than a rectifier passes on what it receives.

    Rules apply to modules. An activation called as a function must be a rectifier, and a product of
    two streams counts both: name the module of one of them in `fixed`.

    Args:
        model: In any mode; it is run in evaluation mode.
        forward: From inputs to logits, `(batch,)` or `(batch, classes)`.
        inputs: `(batch, ...)`, real numbers.
        target: Class of each sample, `(batch,)`; None takes the predicted one.
        fixed: Modules whose output counts as a constant, by dotted name.

    Returns:
        The shape of `inputs`.
    """
    start = inputs.detach().clone().requires_grad_(True)
    with torch.enable_grad(), evaluating(model), propagating(model, fixed):
        logit = chosen_logit(forward(start), target)
        (gradient,) = torch.autograd.grad(logit.sum(), start)
    return (start * gradient).detach()


def chosen_logit(logits: Tensor, target: Tensor | None) -> Tensor:
    """The logit of the target class, or of the predicted one, `(batch,)`.

    Args:
        logits: `(batch,)` or `(batch, classes)`.
        target: `(batch,)`; None takes the predicted class.
    """
    if logits.dim() == 1:
        return logits
    if logits.dim() != 2:
        raise ConfigError(f"forward: logits of shape {tuple(logits.shape)}; give (batch, classes)")
    target = logits.argmax(-1) if target is None else target.to(logits.device).long()
    return logits.gather(1, target[:, None])[:, 0]


@contextmanager
def propagating(model: nn.Module, fixed: Sequence[str] = ()) -> Iterator[None]:
    """Backward passes inside carry relevance instead of gradients; outputs stay the same.

    Args:
        model: In evaluation mode.
        fixed: Modules whose output counts as a constant, by dotted name.

    Raises:
        ConfigError: There is no such module.
    """
    modules = dict(model.named_modules())
    for name in fixed:
        if name not in modules:
            raise ConfigError(f"fixed: the model has no module {name!r}; see named_modules()")
    sites = [name for name, site in attention_sites(model).items() if isinstance(site, Attend)]
    rectifiers = [m for m in modules.values() if isinstance(m, nn.ReLU | nn.ReLU6) and m.inplace]
    with ExitStack() as stack:
        for name, module in modules.items():
            rule = _constant if name in fixed else _rule(module)
            if rule is not None:
                stack.callback(module.register_forward_hook(rule).remove)
        for module in rectifiers:
            # Working in place would overwrite what the rules keep for the way back.
            module.inplace = False
            stack.callback(setattr, module, "inplace", True)
        if sites:
            stack.enter_context(edit_weights(model, dict.fromkeys(sites, Tensor.detach)))
        yield


Rule = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def _rule(module: nn.Module) -> Rule | None:
    if isinstance(module, nn.Linear):
        return _positive
    if isinstance(module, CONVOLUTIONS):
        return _stabilised
    if isinstance(module, ACTIVATIONS):
        return _passed
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return _scaled
    return None


def _constant(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    del module, args
    return out.detach()


def _positive(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    weight = cast(nn.Linear, module).weight
    return cast(Tensor, PositiveRule.apply(args[0], weight, out.detach()))


def _stabilised(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    del module, args
    return cast(Tensor, StableRule.apply(out))


def _passed(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    del module
    x = args[0]
    # f(x) = x (f(x) / x): with the quotient as a constant, what comes back is what went in.
    ratio = torch.where(x == 0, torch.zeros_like(x), out / torch.where(x == 0, 1.0, x)).detach()
    return _valued(x * ratio, out)


def _scaled(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    x = args[0]
    if isinstance(module, nn.LayerNorm):
        axes = tuple(range(-len(module.normalized_shape), 0))
        mean = x.mean(axes, keepdim=True)
        variance = x.var(axes, correction=0, keepdim=True)
        plain = (x - mean) / (variance + module.eps).sqrt().detach()
        weight: Tensor | None = module.weight
    else:
        module = cast(nn.GroupNorm, module)
        groups = x.unflatten(1, (module.num_groups, -1)).flatten(2)
        mean = groups.mean(-1, keepdim=True)
        variance = groups.var(-1, correction=0, keepdim=True)
        plain = ((groups - mean) / (variance + module.eps).sqrt().detach()).view_as(x)
        weight = None if module.weight is None else module.weight.view(-1, *[1] * (x.dim() - 2))
    return _valued(plain if weight is None else plain * weight, out)


def _valued(graph: Tensor, value: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another."""
    return graph + (value - graph).detach()


class PositiveRule(Function):
    """The z+ rule: relevance in proportion to the positive contributions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """The output of the layer, as it is."""
        ctx.save_for_backward(x, weight, out)
        return out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Relevance of each input over the input."""
        x, weight, out = ctx.saved_tensors
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        contribution = F.linear(x.clamp(min=0), up) + F.linear(x.clamp(max=0), down)
        share = grads[0] * out / (contribution + STABILISER)
        return torch.where(x >= 0, share @ up, share @ down), None, None


class StableRule(Function):
    """The z rule: the gradient, with the quotient of relevance and output kept finite."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        """The output of the layer, as it is."""
        ctx.save_for_backward(out)
        return out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient times `out / (out + stabiliser)`, the stabiliser with the sign of `out`."""
        (out,) = ctx.saved_tensors
        sign = torch.where(out >= 0, 1.0, -1.0).to(out.dtype)
        return grads[0] * out / (out + STABILISER * sign)
