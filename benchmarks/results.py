"""Results that are kept in files, and their tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from submanifold.common.files import read_json, write_json


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """Read results from a JSON file, or make and write them."""
    if (result := read_json(path)) is None:
        result = measure()
        write_json(path, result)
    return result


def over_seeds(values: Sequence[float], form: str) -> str:
    """Write a mean, and with several seeds the half-width of its 95% interval (Student's t)."""
    text = format(np.mean(values), form)
    if len(values) > 1:
        quantile = student.ppf(0.975, len(values) - 1)
        half = quantile * np.std(values, ddof=1) / math.sqrt(len(values))
        text += f" ± {half:{form}}"
    return text


def with_interval(interval: Mapping[str, Any]) -> str:
    """Write a fraction and its 95% interval, if there is one, in percent."""
    ends = "" if interval["low"] is None else " [{low:.1%}, {high:.1%}]"
    return ("{value:.1%}" + ends).format(**interval)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n"
