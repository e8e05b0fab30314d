"""Parser of fit, validate and test: one-line errors, and a help that fits on two screens."""

from __future__ import annotations

import logging
from argparse import SUPPRESS, Action
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.cli import LightningArgumentParser

from manyhead_core.cli.parser import OneLineErrors, PlainTypes, program_name

TEXTS = {
    "help": "Show this help; -v --help shows every option of the trainer.",
    "config": "A shipped config by name, or a YAML file. Several are merged left to right; "
    "flags win over files.",
    "print_config": "Print the whole configuration as YAML and stop.",
    "seed_everything": "Seed of all random generators.",
    "early_stopping": "Stop when the metric that selects the model no longer improves: "
    "--early_stopping.patience N counts validations.",
    "ckpt_path": "Checkpoint file. Its network is built as it was trained; flags win.",
    "trainer.accelerator": "auto, cpu, gpu, mps.",
    "trainer.devices": "Number of devices, or a list of them.",
    "trainer.strategy": "auto, ddp for several devices, or any of Lightning's.",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, 64-true.",
    "trainer.max_epochs": "Passes over the training data; -1 for no limit.",
    "trainer.max_steps": "Optimiser steps at most; -1 for no limit.",
    "trainer.max_time": "Time limit as DD:HH:MM:SS.",
    "trainer.limit_train_batches": "Batches of an epoch: a number, or a fraction such as 0.1.",
    "trainer.limit_val_batches": "The same for validation.",
    "trainer.val_check_interval": "Steps between validations, or a fraction of an epoch.",
    "trainer.gradient_clip_val": "Largest norm of the gradient.",
    "trainer.accumulate_grad_batches": "Batches that make one optimiser step.",
    "trainer.deterministic": "true, false, or warn: use deterministic algorithms.",
    "trainer.fast_dev_run": "Run this many batches and write nothing.",
    "trainer.log_every_n_steps": "Steps between two rows of metrics.csv.",
}
TITLES = {"trainer": "training loop, options of pytorch_lightning.Trainer", "ckpt_path": "weights"}


class ShortHelp(PlainTypes):
    """Types and defaults, without the list of every class that an option could take."""

    def _get_help_string(self, action: Action) -> str:
        if action.help != TEXTS.get(action.dest):
            return super()._get_help_string(action)
        shown = action.default is not None and action.default != SUPPRESS
        return f"{action.help} (default: %(default)s)" if shown else str(action.help)


class TrainingParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with one-line errors and a readable help."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, formatter_class=ShortHelp, allow_abbrev=False, **options)

    def format_help(self, formatter: Any = None) -> str:
        """The help; with -v it lists what Lightning offers beside the usual options."""
        if logging.getLogger("manyhead_core").level <= logging.INFO:
            return super().format_help(formatter)
        with self._short():
            return super().format_help(formatter)

    @contextmanager
    def _short(self) -> Iterator[None]:
        helps = {id(action): action.help for action in self._actions}
        groups: list[Any] = list(self._action_groups)
        titles = [group.title for group in groups]
        before = self.usage, self.description
        for action in self._actions:
            action.help = TEXTS.get(action.dest, SUPPRESS if _rare(action) else action.help)
        for group in groups:
            names = {action.dest.partition(".")[0] for action in group._group_actions}
            group.title = next((TITLES[name] for name in names & set(TITLES)), group.title)
        ordered = sorted(groups, key=lambda group: bool(group.title == TITLES["trainer"]))
        self._action_groups = ordered
        program = program_name(self.prog)
        self.usage = f"{program} [--config NAME_OR_FILE]... [--group.option VALUE]..."
        self.description = _shortcut(program)
        try:
            yield
        finally:
            self.usage, self.description = before
            self._action_groups = groups
            for group, title in zip(groups, titles, strict=True):
                group.title = title
            for action in self._actions:
                action.help = helps[id(action)]


def _rare(action: Action) -> bool:
    takes_file = type(action).__name__ == "_ActionConfigLoad"
    helps = any(option.endswith(".help") for option in action.option_strings)
    return takes_file or helps or action.dest.startswith("trainer")


def _shortcut(program: str) -> str:
    if program.endswith(" fit"):
        return (
            f"`{program} --resume FOLDER` goes on with an interrupted run, `FOLDER` as it printed."
        )
    return f"`{program} --run FOLDER` takes config and best.ckpt from the folder of a run."
