"""The model card that goes into every weights folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

RESEARCH_ONLY = "**Research use only, not a medical device.**"


def model_card(
    title: str, app: str, config: Mapping[str, Any], metrics: Mapping[str, str], medical: bool
) -> str:
    """Markdown text: what the weights are, how to use them, what they reached.

    Args:
        title: Name of the model.
        app: Name of the app.
        config: Fields of the architecture.
        metrics: Test results by name, as text.
        medical: Whether the research-only line is added.
    """
    rows = [f"| {name} | {value} |" for name, value in metrics.items()]
    results = ["| metric | test set |", "|---|---|", *rows] if rows else ["No test results saved."]
    notes = ["", RESEARCH_ONLY] if medical else []
    lines = [
        "---",
        "library_name: manyhead",
        f"tags: [manyhead, {app}]",
        "---",
        f"# {title}",
        *notes,
        "",
        f"Weights of the app `{app}`, written by manyhead {version('manyhead')}.",
        "",
        "## Use",
        "",
        "```python",
        "import manyhead",
        "",
        f'model = manyhead.load("{app}", "this/folder")',
        "```",
        "",
        "## Results",
        "",
        *results,
        "",
        "They hold for the data of that run. Check the model on data of your own before use, by",
        "group and by site, and state the training data and their licence here when you share it.",
        "",
        "## Architecture",
        "",
        *(f"- `{name}`: {value}" for name, value in config.items()),
    ]
    return "\n".join(lines) + "\n"
