"""A sweep as a SLURM array: one task a cell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from manyhead_core.errors import UserError
from manyhead_core.evaluate.files import replace_text

MARK = "# written by manyhead sweep"


def write_script(path: Path, command: Sequence[str], number: int, jobs: int, name: str) -> None:
    """Write the script of an array that runs one cell a task.

    Args:
        path: File; an earlier script of a sweep is replaced, nothing else.
        command: Command of the sweep, without the number of the cell.
        number: Cells.
        jobs: Tasks that may run at the same time; 1 sets no limit.
        name: Name of the job.

    Raises:
        UserError: There is another file of this name.
    """
    if path.exists() and not (path.is_file() and MARK in path.read_text(errors="replace")):
        raise UserError(f"--slurm: {path} exists and is no script of a sweep; choose another name")
    replace_text(path, script(command, number, jobs, name))


def script(command: Sequence[str], number: int, jobs: int, name: str) -> str:
    """Text of the script; memory, time and partition are left to the user's sbatch options."""
    together = f"%{jobs}" if 1 < jobs < number else ""
    return "\n".join(
        [
            "#!/bin/bash",
            MARK,
            f"#SBATCH --job-name={name}",
            f"#SBATCH --array=0-{number - 1}{together}",
            "#SBATCH --requeue",
            "# Time, memory and device are yours: sbatch --time=2:00:00 --gpus=1 THIS_FILE",
            "set -euo pipefail",
            'cd "${SLURM_SUBMIT_DIR:-.}"',
            f'{shlex.join(command)} --cell "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )
