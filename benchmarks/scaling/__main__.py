"""How far the program scales: processes, a million images, millions of files, larger images.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --parts names sizes

Each part is measured and kept in ``--folder``, which takes some 25 GB; the results are
written to `docs/evidence/scaling.md`. The synthetic pictures stay in the folder for the next time.
"""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling import million, names, processes, sizes
from benchmarks.scaling.watch import REPOSITORY
from submanifold.common.files import read_json, write_json
from submanifold.common.processes import cores

PARTS = {"processes": processes, "million": million, "names": names, "sizes": sizes}
"""Modules with ``measure(folder)``, ``broken(found)`` and ``page(found)``."""
PAGE = REPOSITORY / "docs" / "evidence" / "scaling.md"
FOLDER = Path("data/08_reporting/scaling")


def measure(part: str, folder: Path) -> dict[str, Any]:
    """Measure a part, keep it, and write the page anew."""
    folder.mkdir(parents=True, exist_ok=True)
    before = os.getloadavg()[0]
    found = PARTS[part].measure(folder.absolute())
    load = max(before, os.getloadavg()[0])
    write_json(folder / f"{part}.json", {"load": load, "cores": cores(), "found": found})
    write_page(folder)
    return found


def write_page(folder: Path) -> None:
    """Write the sections of all parts that were measured."""
    kept = {part: read_json(folder / f"{part}.json") for part in PARTS}
    sections = [
        f"{PARTS[part].page(each['found'])}\n{_held(part, each)}\n"
        for part, each in kept.items() if each is not None
    ]  # fmt: skip
    machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    head = f"""# Scaling

Written by `python -m benchmarks.scaling` ({machine}); the same is checked by
`pytest -m slow`. Memory is what all processes of a command have together, what they share counted
once (`smaps_rollup`, once a second); pages of files, which the system takes back when it needs
them, are counted apart. GB are 10^9 bytes.

"""
    PAGE.write_text(head + "\n".join(sections))


def _held(part: str, kept: dict[str, Any]) -> str:
    wrong = PARTS[part].broken(kept["found"])
    verdict = f"What `pytest -m slow -k {part}` asks for: {'; '.join(wrong) or 'it holds'}."
    return f"{verdict} {kept['cores']} cores, with a load of {kept['load']:.0f} by this and others."


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    for part in options.parts:
        measure(part, options.folder)
    write_page(options.folder)


if __name__ == "__main__":
    main()
