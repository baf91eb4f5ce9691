"""Targets of `submanifold reproduce`, and how their pages are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from submanifold.common.files import atomic_write
from submanifold.common.settings import parse_yaml
from submanifold.common.text_tables import format_table
from submanifold.plots.images import DPI
from submanifold.runs.experiments import CachedRun

Params = dict[str, Any]  # parameters of an experiment, by names with dots
Runs = Mapping[str, Sequence[CachedRun]]  # runs by label, one for each seed


@dataclass
class Content:
    """Content of a page, from the conclusions at its top to the notes at its end."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # by caption
    figures: dict[str, Figure] = field(default_factory=dict)  # by caption
    data: pd.DataFrame | None = None  # behind them
    notes: list[str] = field(default_factory=list)
    conclusions: list[str] = field(default_factory=list)
    measured: str = ""  # when the models were trained


@dataclass(frozen=True)
class Target:
    """A page: a table or a figure of the paper, or a comparison."""

    title: str
    needs: Mapping[str, Params]  # the experiments by label
    make: Callable[[Runs], Content]
    seeds: bool = False  # whether it uses more than one seed
    evaluated: bool = True  # whether it uses the metrics of the runs, not their models alone

    def content(self, runs: Runs) -> Content:
        """Make the content of the page."""
        content = self.make(runs)
        if missing := [label for label in self.needs if not runs.get(label)]:
            content.notes.append(f"Not trained: {', '.join(missing)}.")
        times = [run.finished_at for seeds in runs.values() for run in seeds]
        if times:
            days = dict.fromkeys(f"{date.fromtimestamp(end(times)):%d %B %Y}" for end in (min, max))
            hours = sum(run.seconds() for seeds in runs.values() for run in seeds) / 3600
            content.measured = (
                f"The models are from {' to '.join(days)}; they were trained in {hours:.1f} hours."
            )
        return content


def read_page(name: str) -> dict[str, Any]:
    """Read ``<name>.yml`` in this package: settings, columns and notes of a page."""
    return parse_yaml((files(__package__) / f"{name}.yml").read_text(encoding="utf-8"))


def write(name: str, title: str, content: Content, folder: Path, options: str = "") -> Path:
    """Write ``<name>.md`` and ``.csv``, and a PNG and a PDF for each figure; return the page."""
    numbered = name.startswith(("table-", "figure-"))
    lines = [f"# {name.replace('-', ' ').capitalize()}. {title}" if numbered else f"# {title}"]
    lines += ["\n".join(f"- {line}" for line in content.conclusions)]
    again = f"Regenerate this page with `submanifold reproduce {name}{options}`."
    lines += [f"{content.measured} {again}".strip()]
    for caption, table in content.tables.items():
        lines += [f"## {caption}", format_table(table.to_dict("records"), markdown=True)]
    lines += ["## Figures"] if content.tables and content.figures else []
    for number, (caption, figure) in enumerate(content.figures.items(), start=1):
        file = f"{name}-{number}" if number > 1 else name
        for ending, dpi in (("png", DPI), ("pdf", 2 * DPI)):
            with atomic_write(folder / f"{file}.{ending}") as partial:
                figure.savefig(partial, format=ending, dpi=dpi)
        lines += [f"![{caption}]({file}.png)", caption]
    lines += ["## Notes"] if content.notes else []
    lines += ["\n".join(f"- {note}" for note in content.notes)]
    texts = {"md": "\n\n".join(line for line in lines if line) + "\n"}
    if content.data is not None:
        texts["csv"] = content.data.to_csv(index=False)
    for ending, text in texts.items():
        with atomic_write(folder / f"{name}.{ending}") as partial:
            partial.write_text(text, encoding="utf-8")
    return folder / f"{name}.md"
