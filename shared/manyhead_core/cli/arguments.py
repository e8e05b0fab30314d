"""The command line of a training command before it is parsed: names become files and folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from manyhead_core.app import App
from manyhead_core.cli.configs import resolve
from manyhead_core.errors import UserError

SHORTCUT = {"fit": "--resume", "validate": "--run", "test": "--run"}


@dataclass
class Arguments:
    """A training command line with every shortcut spelled out.

    Args:
        configs: Files of `--config`, in order.
        flags: All other arguments.
        checkpoint: File of `--ckpt_path`, given or implied.
        name: Names of the configs, joined; the default name of the run's folder.
    """

    configs: list[Path] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    name: str = "default"

    def command_line(self, command: str) -> list[str]:
        """What the parser gets: files first, so that flags win wherever they stand."""
        configs = [word for path in self.configs for word in ("--config", str(path))]
        checkpoint = ["--ckpt_path", str(self.checkpoint)] if self.checkpoint else []
        return [command, *configs, *checkpoint, *self.flags]

    def given(self, group: str, files: bool) -> set[str]:
        """Dotted names below `group` that the user has set.

        Args:
            group: Name of the group, as `model`.
            files: Whether settings in config files count.
        """
        prefix = f"--{group}."
        words = (word.split("=", 1)[0] for word in self.flags if word.startswith(prefix))
        names = {word.removeprefix(prefix).rstrip("+") for word in words}
        if files:
            for path in self.configs:
                names |= set(_leaves(_content(path).get(group) or {}))
        return names


def expand(app: App, command: str, words: Sequence[str]) -> Arguments:
    """Spell out `--config NAME`, `fit --resume PATH` and `test --run FOLDER`.

    Args:
        app: Row of the app.
        command: `fit`, `validate` or `test`.
        words: Arguments after the command.

    Raises:
        UserError: A config, run folder or checkpoint does not exist.
    """
    found = Arguments()
    names: list[str] = []
    folder: Path | None = None
    for option, value in _options(words):
        if option in ("-c", "--config") and value is not None:
            found.configs.append(resolve(app, value))
            _content(found.configs[-1])
            names.append(found.configs[-1].stem)
        elif option == SHORTCUT[command] and value is not None:
            folder = Path(value)
        elif option == "--ckpt_path" and value is not None:
            found.checkpoint = Path(value)
        else:
            found.flags += [option] if value is None else [option, value]
    if folder is not None:
        _use_run(found, folder, SHORTCUT[command])
    if found.checkpoint is not None and not found.checkpoint.is_file():
        raise UserError(f"--ckpt_path: file {found.checkpoint} does not exist")
    found.name = "+".join(names) or found.name
    return found


def _options(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    ours = {"-c", "--config", "--ckpt_path", *SHORTCUT.values()}
    pending = iter(words)
    for word in pending:
        option, equals, value = word.partition("=")
        if option not in ours:
            yield word, None
        elif equals:
            yield option, value
        else:
            following = next(pending, None)
            if following is None or following.startswith("--"):
                raise UserError(f"{option}: needs a value")
            yield option, following


def _use_run(found: Arguments, folder: Path, option: str) -> None:
    """Take config and checkpoint from a run folder, or from the run of a checkpoint file."""
    if folder.is_file():
        found.checkpoint = folder
        folder = folder.parent.parent
    if not folder.is_dir():
        raise UserError(f"{option}: folder {folder} does not exist")
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{option}: {folder} holds no config.yaml; pass a folder that fit has made")
    found.configs.insert(0, config)
    name = "last" if option == "--resume" else "best"
    if found.checkpoint is None:
        found.checkpoint = folder / "checkpoints" / f"{name}.ckpt"
        if not found.checkpoint.is_file():
            raise UserError(f"{option}: {folder} holds no checkpoints/{name}.ckpt yet")


def _content(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"--config: cannot read {path}: {err}") from err
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"--config: {path}{line}: is not valid YAML") from err
    if not isinstance(content or {}, Mapping):
        raise UserError(f"--config: {path} must hold groups such as model, data and trainer")
    return content or {}


def _leaves(content: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(content, Mapping):
        yield prefix.rstrip(".")
        return
    for name, value in content.items():
        yield from _leaves(value, f"{prefix}{name}.")


def without(values: Mapping[str, Any], names: set[str], prefix: str = "") -> dict[str, Any]:
    """`values` less the dotted `names`, and less what lies below a named group."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in names:
            continue
        kept[key] = without(value, names, f"{name}.") if isinstance(value, Mapping) else value
    return kept
