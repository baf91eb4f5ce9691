"""What prepared events have beside their arrays."""

import json
from pathlib import Path
from typing import Any


def read_sidecar(folder: Path, name: str) -> dict[str, list[Any]]:
    """Read labels, groups, rows or changes of prepared events by split; empty without them."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {}
