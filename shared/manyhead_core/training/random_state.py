"""Random generators in the checkpoint: a resumed run draws what the uninterrupted one would."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Save the state of the Python, numpy, torch and CUDA generators; restore it on resume.

    The state is restored when the checkpoint is loaded, before the loaders start an epoch, and
    once more before the first batch when the run was cut within an epoch: there the loader's
    start has drawn numbers that the uninterrupted run never drew.

    A loader with a state of its own (`state_dict`, `load_state_dict`) gets it back here when the
    run was cut between two epochs: Lightning restores it within an epoch only.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states as tensors and plain values."""
        return capture()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the generators and keep the state for the first batch."""
        self._loaded = state_dict
        restore(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore once more where the start of the loaders has drawn numbers."""
        loop = trainer.fit_loop
        pending = loop._combined_loader_states_to_load
        if self._loaded is not None and (pending or loop.restarted_mid_epoch):
            restore(self._loaded)
        self._loaded = None
        if pending and loop._combined_loader is not None and loop._data_fetcher is not None:
            loop._combined_loader._load_state_dicts(pending)
            loop._combined_loader_states_to_load = []
            iter(loop._data_fetcher)


def capture() -> dict[str, Any]:
    """State of all generators, in types that `torch.load(weights_only=True)` accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    version, words, gauss = random.getstate()
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Set all generators to a state of `capture`; CUDA only where as many devices are visible."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        (numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"])
    )
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([words.cpu() for words in state["cuda"]])


def run_seed() -> int:
    """Seed of the run, as `seed_everything` has set it; 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
