"""A folder of millions of files: cost of a command that checks that nothing has changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.reliability import Project
from benchmarks.scaling.pictures import make_tree
from benchmarks.scaling.watch import Watched, watch

SIZE = 32
LIMIT = 60.0


def measure(folder: Path, count: int = 3_000_000) -> dict[str, Any]:
    """Prepare some images of a tree, again, and again after one file has changed."""
    tree, project = folder / f"tree-{count}", folder / "names"
    if not tree.exists():
        shutil.rmtree(making := folder / "making", ignore_errors=True)
        make_tree(making, count, SIZE)
        making.rename(tree)
    shutil.rmtree(project, ignore_errors=True)
    Project.make(project)

    def prepare() -> dict[str, Any]:
        done = watch("-m", "kedro", "run", "--pipeline=data", folder=project)
        made = len([*project.glob("data/03_primary/*/manifest.json")])
        return {**_told(done), "prepared": made}

    data = {"path": str(tree), "counts": {"train": 8000, "valid": 1000, "test": 1000}}
    chosen = json.dumps({"dataset": "folder", "data": data})
    (project / "conf" / "local" / "parameters.yml").write_text(chosen)
    found = {"files": count, "first": prepare(), "second": prepare()}
    _overwrite(tree / "00000" / "00000007.jpg")
    return {**found, "changed": prepare()}


def _told(done: Watched) -> dict[str, float]:
    return {name: getattr(done, name) for name in ("seconds", "cpu_seconds", "memory")}


def _overwrite(path: Path) -> None:
    """Another byte in place, with the size and the time that the file had."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def broken(found: dict[str, Any]) -> list[str]:
    """What does not hold."""
    second, changed = found["second"], found["changed"]
    return [what for what, holds in {
        "the second time takes a minute or more": second["seconds"] < LIMIT,
        "the second run prepares again": second["prepared"] == 1,
        "a changed file goes unseen": changed["prepared"] == 2,
    }.items() if not holds]  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """Write the section."""
    rows = "\n".join(
        f"| {name} | {row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['memory'] / 1e9:.2f} |"
        for name, row in (
            ("first run", found["first"]),
            ("second run, nothing changed", found["second"]),
            (
                "one file overwritten in place, with equal size and time",
                found["changed"],
            ),
        )
    )
    return f"""## A folder of {found["files"]:,} files

A tree of {found["files"]:,} JPEGs, 1,000 in each folder, of which 10,000 are prepared by
`kedro run --pipeline=data --params=dataset=folder,data.path=<folder>` with given `data.counts`.

| | seconds | CPU seconds | memory, GB |
| --- | --- | --- | --- |
{rows}

The folder `data/01_raw/.fingerprints/` keeps a digest of all names, sizes, times and inodes, and
the identity of their content. Every command lists the tree and reads the status of every file:
overwriting a file in place changes neither the time of its folder nor, if it is restored, its own
modification time; only the time of its inode changes. If nothing differs, no file is opened. If
something differs, the files are read again: all of them, or, beyond 250,000 files or 4 GiB, a
sample of 4,096 blocks. Beyond these limits any difference counts as a change of the data (in the
last row the images are prepared again under another key).
"""
