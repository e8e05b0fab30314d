"""The calls of the mixers of one kind, for reports about a mechanism."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from manyhead_core.attention.masks import Mask
from manyhead_core.errors import ConfigError

Kind = TypeVar("Kind", bound=nn.Module)


class Call(NamedTuple):
    """One call of a mixer.

    Args:
        layer: Number among the mixers of its kind, in module order.
        x: Tokens, `(batch, tokens, dim)`.
        context: Source of keys, or None.
        mask: Mask, or None.
        grid: Grid, or None.
        result: What the watched method gave in this call; None without such a method.
    """

    layer: int
    x: Tensor
    context: Tensor | None
    mask: Mask | None
    grid: tuple[int, int] | None
    result: Any


@contextmanager
def calls_of(layers: Sequence[nn.Module], method: str | None = None) -> Iterator[list[Call]]:
    """The calls of some mixers inside the `with`, and what one of their methods gave in each.

    Args:
        layers: Mixers.
        method: Name of a method that runs once in each call.
    """
    calls: list[Call] = []
    results: dict[int, Any] = {}

    def after(number: int) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
        ) -> None:
            del module, out
            x = args[0] if args else kwargs["x"]
            context = args[1] if len(args) > 1 else kwargs.get("context")
            result = None if method is None else results.pop(number)
            rest = (kwargs.get("mask"), kwargs.get("grid"), result)
            calls.append(Call(number, x.detach(), context, *rest))

        return hook

    def watched(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            results[number] = function(*args, **kwargs)
            return results[number]

        return run

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            handle = layer.register_forward_hook(after(number), with_kwargs=True)
            stack.callback(handle.remove)
            if method is not None:
                # An attribute of the instance hides the method of the class until it is deleted.
                setattr(layer, method, watched(number, getattr(layer, method)))
                stack.callback(delattr, layer, method)
        yield calls


def layers_of(model: nn.Module, kind: type[Kind], name: str) -> list[Kind]:
    """The mixers of one kind, in module order.

    Args:
        model: Any model.
        kind: Class of the mixer.
        name: What a message calls it.

    Raises:
        ConfigError: There is none.
    """
    found = [module for module in model.modules() if isinstance(module, kind)]
    if not found:
        raise ConfigError(f"model: it has no {name} layer; this report is about those only")
    return found
