"""Targets of `kedro reproduce`, and how their pages are written."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from matplotlib.figure import Figure

from submanifold.common.files import atomic_write
from submanifold.plots.images import DPI, as_png
from submanifold.plots.pages import render
from submanifold.studies.experiments import CachedRun

Changes = tuple[tuple[str, Any], ...]
Runs = Mapping[str, Sequence[CachedRun]]
"""Runs by label, one for each seed."""


class Need(NamedTuple):
    """An experiment that a target needs: a file in conf/runs, and changes to its parameters."""

    config: str
    changes: Changes = ()


@dataclass
class Content:
    """Content of a page.

    Attributes:
        tables: Tables by caption.
        figures: Figures by caption.
        data: The data behind them.
        notes: Notes at the end.
        conclusions: Sentences at the top.
        measured: When and with which settings the results were measured, and the command.
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    data: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    conclusions: list[str] = field(default_factory=list)
    measured: str = ""


@dataclass(frozen=True)
class Target:
    """A page: a table or a figure of the paper, or a comparison.

    Attributes:
        title: Title of the page.
        needs: The experiments by label.
        make: Makes the content of the runs, and of the recorded results if there is a record.
        seeds: Whether it uses more than one seed.
        evaluated: Whether it uses the metrics of the runs, not their models alone.
        record: CSV file in the project with recorded results, which stand in for missing runs.
    """

    title: str
    needs: Mapping[str, Need]
    make: Callable[..., Content]
    seeds: bool = False
    evaluated: bool = True
    record: str | None = None

    def content(self, runs: Runs, project: Path) -> Content:
        """Make the content of the page."""
        if not self.has_record(project):
            return self.make(runs)
        return self.make(runs, pd.read_csv(project / str(self.record)))

    def has_record(self, project: Path) -> bool:
        """Whether there are recorded results."""
        return self.record is not None and (project / self.record).is_file()


def read_page(name: str) -> dict[str, Any]:
    """Read ``<name>.yml`` in this package: settings, columns and notes of a page."""
    return yaml.safe_load((files(__package__) / f"{name}.yml").read_text(encoding="utf-8"))


def write(name: str, title: str, content: Content, folder: Path) -> Path:
    """Write ``<name>.md``, ``.csv`` and ``.html``, and a PNG and a PDF for each figure.

    Returns:
        Path of the HTML page.
    """
    numbered = name.startswith(("table-", "figure-"))
    heading = f"{name.replace('-', ' ').capitalize()}. {title}" if numbered else title
    lines, pictures = [f"# {heading}", ""], {}
    measured = content.measured or (
        f"Written on {date.today():%d %B %Y} by version {version('submanifold')}. "
        f"Regenerate this page with `submanifold reproduce {name}`."
    )
    for paragraph in ("\n".join(f"- {line}" for line in content.conclusions), measured):
        lines += [paragraph, ""] if paragraph else []
    for caption, table in content.tables.items():
        lines += [f"## {caption}", "", table.to_markdown(index=False, disable_numparse=True), ""]
    lines += ["## Figures", ""] if content.tables and content.figures else []
    for number, (caption, figure) in enumerate(content.figures.items(), start=1):
        file = f"{name}-{number}" if number > 1 else name
        pictures[caption] = as_png(figure, dpi=2 * DPI)
        with atomic_write(folder / f"{file}.png") as partial:
            partial.write_bytes(pictures[caption])
        with atomic_write(folder / f"{file}.pdf") as partial:
            figure.savefig(partial)
        lines += [f"![{caption}]({file}.png)", "", caption, ""]
    lines += ["## Notes", ""] if content.notes else []
    lines += [f"- {note}" for note in content.notes]
    about = {
        "heading": heading,
        "title": title,
        "content": content,
        "pictures": pictures,
        "measured": _plain(measured),
        "conclusions": [_plain(line) for line in content.conclusions],
        "notes": [_plain(note) for note in content.notes],
    }
    texts = {
        "md": "\n".join(lines).rstrip() + "\n",
        "html": render("target.html", **about),
        "csv": "" if content.data is None else content.data.to_csv(index=False),
    }
    for ending, text in texts.items():
        if text:
            with atomic_write(folder / f"{name}.{ending}") as partial:
                partial.write_text(text, encoding="utf-8")
    return folder / f"{name}.html"


def _plain(text: str) -> str:
    """Remove Markdown's links, roles and code quotes."""
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"(?:\{\w+\})?`([^`<]+?)(?: <[^>]+>)?`", r"\1", text)
