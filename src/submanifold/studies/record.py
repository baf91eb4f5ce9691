"""What was measured before, on this machine or another: it stands where there is no run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd


def with_record(
    data: pd.DataFrame, path: Path, order: Sequence[str], columns: Sequence[str]
) -> tuple[pd.DataFrame, int]:
    """Add the lines of a CSV that the data do not have, sorted by row and then by columns.

    Args:
        data: What was measured here, with the columns ``data``, ``row`` and those below.
        path: Of the CSV, which may not be there.
        order: Of rows; lines of others are left out.
        columns: By which, with ``data`` and ``row``, lines are the same.

    Returns:
        All lines, and how many are the record's.
    """
    record = pd.read_csv(path) if path.is_file() else data.iloc[:0]
    both = pd.concat([data, record[record["row"].isin(order)]])
    both = both.drop_duplicates(["data", "row", *columns], ignore_index=True)
    places = both["row"].map(list(order).index)
    keys = [both[name] for name in columns]
    both = both.iloc[np.lexsort((*keys, places))].reset_index(drop=True)
    return both, len(both) - len(data)
