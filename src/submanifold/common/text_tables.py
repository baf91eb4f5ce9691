"""Tables of text, for the terminal and for pages in Markdown."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any


def format_table(rows: Sequence[Mapping[Any, Any]], markdown: bool = False) -> str:
    """Write rows below the names of their columns; a missing value, or None, is empty.

    Example:
        >>> print(format_table([{"run": "holiday", "d": 500}, {"run": "a", "state": "finished"}]))
        run      d    state
        -------  ---  --------
        holiday  500
        a             finished
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [
        ["" if (value := row.get(name)) is None else str(value) for name in names] for row in rows
    ]
    cells = [[text.split("\n") for text in row] for row in texts]
    lines = [line for row in cells for line in zip_longest(*row, fillvalue="")]
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    rule = [f":{'-' * (width - 1)}" if markdown else "-" * width for width in widths]
    padded = [
        [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        for line in (names, rule, *lines)
    ]
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)
    return "\n".join("  ".join(line).rstrip() for line in padded)
