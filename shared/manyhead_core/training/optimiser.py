"""Optimisers by name, with weight decay by role and two Adams that torch does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer

from manyhead_core.errors import ConfigError

Name = Literal["adam", "adam_tf", "lazy_adam", "adagrad", "sgd"]
ROLES = ("embedding", "tower")
REST = "rest"
FUSED = ("cpu", "cuda")


def build_optimiser(
    name: Name, net: nn.Module, lr: float, decay: Mapping[str, float], *, sparse: bool = True
) -> Optimizer:
    """The optimiser `name` over the parameters of `net`.

    Decay is coupled: a weight `w` adds `decay * w` to its gradient, which is the gradient of
    `decay * sum(w ** 2) / 2`.

    Args:
        name: `adam`; `adam_tf` (`AdamTF`); `lazy_adam` (`LazyAdam`, another algorithm); `adagrad`
            with an initial accumulator of 1e-8; `sgd` with momentum 0.95.
        net: Network whose parameters are trained.
        lr: Learning rate.
        decay: Weight decay by role: `embedding` for embedding tables, `tower` for the weight
            matrices (not the biases) of modules called `tower`.
        sparse: Whether `lazy_adam` switches `nn.Embedding` modules to sparse gradients, which are
            faster for large tables.

    Raises:
        ConfigError: The learning rate or a decay is not a sensible number.
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise ConfigError(f"lr must be a positive number, got {lr}")
    groups = _groups(net, decay)
    if name == "adam":
        return _fused(Adam, net, groups, lr=lr)
    if name == "adam_tf":
        return _fused(AdamTF, net, groups, lr=lr)
    if name == "lazy_adam":
        _make_sparse(net, sparse)
        lazy = [group | {"lazy": group["name"] == "embedding"} for group in groups]
        return _fused(LazyAdam, net, lazy, lr=lr)
    if name == "adagrad":
        # The accumulator starts above zero, so TensorFlow's form without epsilon is safe.
        return Adagrad(groups, lr=lr, initial_accumulator_value=1e-8, eps=0.0)
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=0.95)
    raise ConfigError(f"optimizer: unknown name {name!r}; known: {', '.join(get_args(Name))}")


class AdamTF(Adam):
    """Adam as TensorFlow 1 computes it: epsilon is added before the bias correction.

    `w -= lr * sqrt(1 - b2**t) / (1 - b1**t) * m / (sqrt(v) + eps)`, which is torch's Adam with
    `eps / sqrt(1 - b2**t)`: at t = 1 epsilon weighs 30 times more than in torch.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, with torch's own kernels."""
        nominal = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            beta2 = float(group["betas"][1])
            group["eps"] /= math.sqrt(1 - beta2 ** (self._steps(group) + 1))
        try:
            return super().step(closure)
        finally:
            for group, eps in zip(self.param_groups, nominal, strict=True):
                group["eps"] = eps

    def _steps(self, group: dict[str, Any]) -> int:
        taken = (self.state[p]["step"] for p in group["params"] if "step" in self.state.get(p, {}))
        return int(max(taken, default=0))


class LazyAdam(Adam):
    """Adam that moves only those rows of an embedding table that occur in the batch.

    Every row of a table in a group with `lazy=True` runs its own Adam over the steps in which it
    occurs: its moments decay, its bias correction counts and its weight decay acts in these steps
    only. This is **another algorithm** than Adam, which moves all rows in every step. All other
    groups get torch's Adam. With dense gradients, a row occurs when its gradient is not zero.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hidden: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            tables = group["params"] if group.get("lazy") else ()
            for table in tables:
                if table.grad is not None:
                    hidden.append((table, table.grad))
                    self._step_rows(table, table.grad, group)
                    table.grad = None  # torch's Adam passes over parameters without a gradient
        super().step()
        for table, gradient in hidden:
            table.grad = gradient
        return loss

    def _step_rows(self, table: nn.Parameter, full: Tensor, group: dict[str, Any]) -> None:
        rows, gradient = _touched(full)
        if not len(rows):
            return
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(len(table), device=table.device)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        weights = table[rows]
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * weights
        counts = state["step"]
        if counts.device != table.device:  # restored on another device
            counts = state["step"] = counts.to(table.device)
        count = counts[rows] + 1
        beta1, beta2 = group["betas"]
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # In float64: 1 - 0.999 loses four digits in float32.
        steps = count.double().view(-1, *[1] * (table.dim() - 1))
        correction1 = (1 - beta1**steps).to(table.dtype)
        correction2 = (1 - beta2**steps).to(table.dtype)
        change = mean / correction1 / ((square / correction2).sqrt_() + group["eps"])
        table.index_copy_(0, rows, weights.sub_(change, alpha=group["lr"]))
        counts.index_copy_(0, rows, count)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)


def _touched(gradient: Tensor) -> tuple[Tensor, Tensor]:
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    rows = gradient.flatten(1).ne(0).any(1).nonzero().squeeze(1)
    return rows, gradient[rows]


def _groups(net: nn.Module, decay: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameter groups by role; the decay does not change them, so that a resume may change it."""
    for role, value in decay.items():
        if role not in ROLES:
            raise ConfigError(f"decay: unknown role {role!r}; known: {', '.join(ROLES)}")
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{role}_l2 must be zero or a positive number, got {value}")
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    members: dict[str, list[nn.Parameter]] = {role: [] for role in (*ROLES, REST)}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            members[_role(name, parameter, id(parameter) in tables)].append(parameter)
    return [
        {"params": parameters, "weight_decay": float(decay.get(role, 0.0)), "name": role}
        for role, parameters in members.items()
        if parameters
    ]


def _role(name: str, parameter: Tensor, is_table: bool) -> str:
    path = name.removeprefix("_orig_mod.").split(".")  # the prefix of a compiled network
    if is_table or path[0].startswith("embedding"):
        return "embedding"
    return "tower" if "tower" in path[:-1] and parameter.dim() > 1 else REST


def _make_sparse(net: nn.Module, sparse: bool) -> None:
    for module in net.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = sparse


def _fused(kind: type[Adam], net: nn.Module, groups: list[dict[str, Any]], lr: float) -> Adam:
    fused = all(p.device.type in FUSED and p.is_floating_point() for p in net.parameters())
    optimiser = kind(groups, lr=lr, fused=fused or None)
    # The scaler of mixed precision would leave the unscaling to a fused kernel, and Lightning
    # refuses to clip such gradients.
    optimiser._step_supports_amp_scaling = False
    return optimiser
