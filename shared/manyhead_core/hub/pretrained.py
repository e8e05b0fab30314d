"""`from_pretrained` and `save_pretrained` for the models of every app."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from manyhead_core.errors import ConfigError, WeightsError
from manyhead_core.hub.artefact import Artefact, State
from manyhead_core.hub.card import model_card
from manyhead_core.hub.locate import locate
from manyhead_core.training.plain import from_plain, to_plain

Config = TypeVar("Config")
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


class PretrainedModel(nn.Module, PyTorchModelHubMixin, Generic[Config]):
    """Base of all models: a config dataclass, and weights folders in both directions.

    A subclass sets `app` and `config_class`, and takes the config as its only argument.

    Attributes:
        app: Name of the app; weights of another one are refused.
        config_class: The config dataclass.
        medical: Whether the model card says "research use only".
        config: Architecture.
        preprocessor_state: What the weights folder says about preparing raw data; None for a
            model that was built from a config.
        metrics: Test results by name, as text.
    """

    app: ClassVar[str]
    config_class: ClassVar[type]
    medical: ClassVar[bool] = False
    config: Config

    def __init__(self) -> None:
        super().__init__()
        self.preprocessor_state: State | None = None
        self.metrics: dict[str, str] = {}

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path, **overrides: Any) -> Self:  # type: ignore[override]
        """Build a model from a weights folder or a hub id, in evaluation mode.

        Args:
            folder_or_id: Path of a folder, or `owner/name` on the hub.
            **overrides: Config fields to change, and for the hub `revision`, `token`, `cache_dir`,
                `local_files_only`.

        Raises:
            WeightsError: There are no such weights, or they belong to another app.
            ConfigError: An override is no field of the config.
        """
        options = {name: overrides.pop(name) for name in HUB_OPTIONS if name in overrides}
        folder = locate(folder_or_id, **options)
        artefact = Artefact.read(folder, cls.app)
        model = cls(build_config(cls.config_class, artefact.config | overrides))  # type: ignore[call-arg]
        load_strictly(model, artefact.weights, str(folder))
        model.preprocessor_state = artefact.preprocessor
        model.metrics = artefact.metrics
        return model.eval()

    def example_inputs(self, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs by name, the batch first, for export and tests.

        Args:
            batch: Batch size.
            seed: Seed of the draw.
        """
        raise NotImplementedError

    def named_logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits for inputs by the names of `example_inputs`: what an exported file computes."""
        raise NotImplementedError

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the folder; the mixin adds nothing to files that exist."""
        folder = Path(save_directory)
        config = to_plain(self.config)
        Artefact(
            app=self.app,
            config=config,
            weights=self.state_dict(),
            metrics=self.metrics,
            preprocessor=self.preprocessor_state,
            card=model_card(type(self).__name__, self.app, config, self.metrics, self.medical),
        ).write(folder)


def build_config(kind: type, fields: dict[str, Any]) -> Any:
    """A config dataclass from plain values.

    Args:
        kind: The dataclass.
        fields: Values by field name; lists stand for tuples.

    Raises:
        ConfigError: A name is no field of `kind`.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise ConfigError(
            f"{kind.__name__} has no field {unknown[0]}; known: {', '.join(sorted(known))}"
        )
    return kind(**from_plain(kind, fields))


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load a state dict and name what does not fit.

    Raises:
        WeightsError: Names or shapes differ.
    """
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, the config asks for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    for what, names in (("missing", missing), ("unknown", surplus), ("shape of", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WeightsError(f"{where}: weights {what} {', '.join(names[:3])}{more}")
    model.load_state_dict(weights)
