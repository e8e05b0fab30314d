"""LightningCLI with one-line errors, run folders, resume and results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.seed import isolate_rng

from manyhead_core.app import App
from manyhead_core.attention.settings import configure_sdp
from manyhead_core.cli import checkpoint, console
from manyhead_core.cli.arguments import Arguments, expand, without
from manyhead_core.cli.parser import KEEP_NONE, CommandParser
from manyhead_core.cli.process import surroundings
from manyhead_core.cli.training_parser import TrainingParser
from manyhead_core.errors import ConfigError, WeightsError
from manyhead_core.training import run_folder
from manyhead_core.training.checkpoints import AtomicFiles, BestCheckpoint, LastCheckpoint
from manyhead_core.training.finite import FiniteLoss
from manyhead_core.training.flags_win import FlagsWin
from manyhead_core.training.heap import keep_freed_memory
from manyhead_core.training.progress import progress_callback
from manyhead_core.training.random_state import RandomState
from manyhead_core.training.results import Results

# Exit code of a process that SIGTERM has ended, as a shell reports it.
TERMINATED = 128 + 15
TRAINER_DEFAULTS = {
    "deterministic": "warn",
    "log_every_n_steps": 10,
    "enable_model_summary": False,
    # Lightning's own default is 1000 epochs and a warning.
    "max_epochs": 10,
}


@dataclass
class EarlyStop:
    """Stop when the app's metric no longer improves.

    Args:
        patience: Validation runs without improvement before training stops.
        min_delta: Change that counts as an improvement.
    """

    patience: int
    min_delta: float = 0.0


class SaveConfig(SaveConfigCallback):
    """Write `config.yaml` into the run folder of a fit, ready for `--config` or `--resume`.

    Args:
        folder: Run folder.
        **options: Those of Lightning's callback.
    """

    def __init__(self, *args: Any, folder: Path, **options: Any) -> None:
        super().__init__(*args, **options | {"save_to_log_dir": False})
        self.folder = folder

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Save the whole configuration, without the checkpoint that this start resumed from."""
        config = self.config.clone()
        config.ckpt_path = None
        path = self.folder / self.config_filename
        self.parser.save(config, path, overwrite=True, multifile=False, **KEEP_NONE)


class TrainingCLI(LightningCLI):
    """One training command of one app, from the parsed command line to the end of the run.

    Args:
        app: Row of the app.
        command: `fit`, `validate` or `test`.
        arguments: The rest of the command line, spelled out.
    """

    def __init__(self, app: App, command: str, arguments: Arguments) -> None:
        self.app = app
        self.command = command
        self.arguments = arguments
        self.folder: Path | None = None
        super().__init__(
            app.load("task"),
            app.load("data"),
            save_config_callback=SaveConfig if command == "fit" else None,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=0,
            parser_class=TrainingParser,
            parser_kwargs={"prog": f"manyhead {app.name}"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one command of this command line; parsers for the others would cost a second."""
        hidden = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
        return {self.command: hidden | {"verbose", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run itself."""
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs.")
        parser.add_argument(
            "--name", type=str | None, default=None, help="Folder of the run; default: its config."
        )
        parser.add_argument(
            "--early_stopping", type=EarlyStop | None, default=None, help="Stop without progress."
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int,
            default=500,
            help="Steps between two saves of last.ckpt within an epoch; 0 for none.",
        )
        if self.command != "fit":
            parser.add_argument(
                "--json", type=Path | None, default=None, help="Copy metrics.json to this file."
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the spelled-out command line; `sys.argv` stays what the user typed."""
        self.config = parser.parse_args(self.arguments.command_line(self.command))

    def _parse_ckpt_path(self) -> None:
        """Take the model's settings from the checkpoint, unless the user has given them.

        For a fit, flags and config files win: resuming with another learning rate must not be
        ignored. To evaluate, the network has to be the one in the file: only flags win.
        """
        path = self.arguments.checkpoint
        if path is None:
            return
        values = checkpoint.hyper_parameters(path, self.app.name)
        given = self.arguments.given("model", files=self.command == "fit")
        kept = {self.command: {"model": without(values, given)}}
        self.config = self.parser.parse_object(kept, self.config)

    @property
    def options(self) -> Namespace:
        """Settings of the command."""
        options: Namespace = self.config[self.command]
        return options

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, once for both loggers."""
        path = self.arguments.checkpoint
        self.options.name = self.options.name or self.arguments.name
        limits = self.arguments.given("trainer", files=True)
        if {"max_steps", "max_time"} & limits and "max_epochs" not in limits:
            self.options.trainer.max_epochs = -1
        if self.options.trainer.fast_dev_run:
            return
        self.folder = run_folder.owner(path) if path else None
        if self.folder is None and path is not None and self.command != "fit":
            self.folder = path.with_name(f"{path.stem}-results")
        if self.folder is None:
            self.folder = run_folder.claim(self.options.runs, self.app.name, self.options.name)
        self.save_config_kwargs = {"overwrite": True, "folder": self.folder}

    def instantiate_classes(self) -> None:
        """Build the data first: sizes of the network may depend on it."""
        options = self.options
        with isolate_rng():  # the weights must not depend on how the data were prepared
            self.datamodule = _build(self.datamodule_class, options, "data")
            self._fit_net_to_data()
        self.model = _build(self.model_class, options, "model")
        trainer = _build(Trainer, options, "trainer", instantiate=False)
        self.config_init = Namespace(
            {self.command: Namespace(vars(options) | {"trainer": trainer})}
        )
        self.trainer = self.instantiate_trainer()
        self.model.results = self._results()

    def _fit_net_to_data(self) -> None:
        prepare = getattr(self.datamodule, "prepare", None)
        overrides = getattr(self.datamodule, "net_overrides", None)
        if prepare is not None:
            prepare()
        if overrides is not None:
            for name, value in overrides().items():
                self.options.model.net[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the suite's callbacks, loggers and progress."""
        given = dict(vars(self._get(self.config_init, "trainer")))
        if self.folder is not None:
            given["default_root_dir"] = str(self.folder)
        if given["callbacks"] is None:
            given["callbacks"] = []
        callbacks: list[Callback] = []
        if self.command == "fit":
            callbacks = self._fit_callbacks()
            given["plugins"] = _with_atomic_files(given["plugins"])
            if given["logger"] in (None, True) and self.folder is not None:
                given["logger"] = run_folder.loggers(self.folder)
            if not given["logger"]:
                callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
        else:
            # Numbers are reported from one device: a distributed sampler pads the last batch.
            given |= {"logger": False, "strategy": "auto", "num_nodes": 1, "devices": 1}
        bar = progress_callback()
        if given["enable_progress_bar"] is None:
            given["enable_progress_bar"] = bar.__class__.__name__ == "RichProgressBar"
            callbacks.append(bar)
        try:
            trainer = self._instantiate_trainer(given | kwargs, callbacks)
        except MisconfigurationException as err:
            if "backend found" not in str(err):
                raise
            raise ConfigError(
                f"--trainer.accelerator {given['accelerator']}: this machine has no such device; "
                "use cpu or auto"
            ) from err
        if self.command == "fit" and trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        return trainer

    def _fit_callbacks(self) -> list[Callback]:
        options, app = self.options, self.app
        callbacks: list[Callback] = [FiniteLoss(), RandomState(), FlagsWin()]
        if options.early_stopping is not None:
            stop = vars(options.early_stopping)
            callbacks.append(EarlyStopping(app.monitor, mode=app.mode, strict=False, **stop))
        if self.folder is not None:
            files = self.folder / "checkpoints"
            callbacks += [
                LearningRateMonitor(),
                run_folder.RunFiles(self.folder),
                BestCheckpoint(files, app.monitor, app.mode),
                LastCheckpoint(files, options.checkpoint_every_n_steps),
            ]
        return callbacks

    def _results(self) -> Results | None:
        path = self.arguments.checkpoint
        if self.command == "fit" or self.folder is None:
            return None
        identity = {"config_hash": self._config_hash()}
        if path is not None:
            identity["checkpoint_hash"] = checkpoint.file_hash(path)
        seed, copy = self.options.seed_everything, self.options.json
        return Results(self.app, self.folder, self.options.name, int(seed), identity, copy)

    def _dump_config(self) -> None:
        """Keep the configuration as plain values in `config_dump`."""
        dumped = self.parser.dump(self.config, skip_link_targets=False, format="yaml", **KEEP_NONE)
        self.config_dump = yaml.safe_load(dumped)[self.command]

    def _config_hash(self) -> str:
        self._dump_config()
        parts = {key: self.config_dump[key] for key in ("seed_everything", "model", "data")}
        return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given = super()._prepare_subcommand_kwargs(subcommand)
        given |= {"weights_only": True, "ckpt_path": self.arguments.checkpoint}
        return given if subcommand == "fit" else given | {"verbose": False}

    def after_fit(self) -> None:
        """Say what came of it and where it lies."""
        best = self.trainer.checkpoint_callback
        if self.folder is None or not self.trainer.is_global_zero:
            return
        found = ""
        if isinstance(best, BestCheckpoint) and best.best_model_score is not None:
            found = f"best {self.app.monitor} {float(best.best_model_score):.5g}; "
        console.result(f"{found}run folder {self.folder}")


def run_training(app: App, words: Sequence[str]) -> int:
    """Run `fit`, `validate` or `test` of an app.

    Args:
        app: Row of the app.
        words: The command and what follows it.

    Returns:
        Exit code 0.

    Raises:
        UserError: A mistake in the call, the configuration, the data or the checkpoint.
        KeyboardInterrupt: With the command that resumes the run as its message.
    """
    configure_sdp("safe")
    command, rest = words[0], list(words[1:])
    arguments = expand(app, command, rest)
    if command != "fit" and arguments.checkpoint is None and not {"-h", "--help"} & set(rest):
        raise ConfigError(f"{command}: no weights; pass --run FOLDER or --ckpt_path FILE")
    cli = TrainingCLI.__new__(TrainingCLI)
    with surroundings(f"manyhead {app.name}"):
        try:
            cli.__init__(app, command, arguments)  # type: ignore[misc]
        except KeyboardInterrupt as err:
            raise KeyboardInterrupt(_resume_hint(cli)) from err
        except SIGTERMException as err:
            console.error(f"manyhead {app.name}: stopped by SIGTERM{_resume_hint(cli)}")
            raise SystemExit(TERMINATED) from err
        except SystemExit as err:
            if isinstance(err.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(_resume_hint(cli)) from err
            raise
        except RuntimeError as err:
            if "loading state_dict" not in str(err):
                raise
            raise WeightsError(
                f"--ckpt_path: the weights do not fit the network: "
                f"{str(err).splitlines()[1].strip()} Same model.net options and data as in the fit?"
            ) from err
        finally:
            _drop_empty(getattr(cli, "folder", None))
    return 0


def _drop_empty(folder: Path | None) -> None:
    """Give back the number of a run that a mistake has ended before it wrote anything."""
    if folder is not None:
        with suppress(OSError):  # a folder that holds something stays
            folder.rmdir()


def _resume_hint(cli: TrainingCLI) -> str:
    folder = getattr(cli, "folder", None)
    last = folder / "checkpoints" / "last.ckpt" if folder else None
    if cli.command != "fit" or last is None or not last.is_file():
        return ""
    return f"; resume with: manyhead {cli.app.name} fit --resume {folder}"


def _with_atomic_files(plugins: Any) -> list[Any]:
    listed = plugins if isinstance(plugins, list) else [plugins] if plugins else []
    own = any(isinstance(plugin, CheckpointIO) for plugin in listed)
    return listed if own else [*listed, AtomicFiles()]


def _build(kind: Any, options: Namespace, group: str, *, instantiate: bool = True) -> Any:
    """Instantiate one group of the configuration."""
    parser = CommandParser()
    parser.add_class_arguments(
        kind, group, fail_untyped=False, sub_configs=True, instantiate=instantiate
    )
    return parser.built(Namespace({group: options[group]}))[group]
