"""Run a command, and see what memory it and all its children take together."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EVERY = 1.0  # seconds: a look at a process that has mapped gigabytes takes a while itself
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
        output: All that it said.
        seconds: By the clock.
        cpu_seconds: Of all its processes.
        memory: Most of all processes together at a moment, in bytes: what is theirs alone, with
            what they share counted once. Files' pages, which the system takes back, are not in it.
        file_pages: The most of such pages.
        processes: The most at a moment.
        by_node: The memory during each of Kedro's nodes.
    """

    output: str
    seconds: float
    cpu_seconds: float
    memory: int
    file_pages: int
    processes: int
    by_node: dict[str, int]


def watch(
    *arguments: str, folder: Path = REPOSITORY, stop_when: Callable[[str], bool] | None = None
) -> Watched:
    """Run Python with some arguments, to its end or until it is killed for what it has said.

    Raises:
        RuntimeError: If it failed.
    """
    paths = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
    env = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "400"}
    started, before = time.monotonic(), os.times()
    memory, pages, most = 0, 0, 0
    by_node: dict[str, int] = {}
    of_this_node = 0
    with tempfile.NamedTemporaryFile("w+") as said:
        log = Path(said.name)
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=env,
                                   stdout=said, stderr=subprocess.STDOUT)  # fmt: skip
        while process.poll() is None:
            seen = [_memory(pid) for pid in _family(process.pid)]
            now = sum(own for own, _ in seen)
            memory, most = max(memory, now), max(most, len(seen))
            pages = max(pages, sum(of_files for _, of_files in seen))
            of_this_node = max(of_this_node, now)
            so_far = log.read_text()
            completed = re.findall(r"Completed node: (\S+)", so_far)
            if len(completed) > len(by_node):
                by_node |= dict.fromkeys(completed[len(by_node) :], of_this_node)
                of_this_node = 0
            if stop_when is not None and stop_when(so_far):
                process.kill()
            time.sleep(EVERY)
        seconds, after = time.monotonic() - started, os.times()
        output = log.read_text()
    if process.returncode and stop_when is None:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{output}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Watched(output, seconds, cpu, memory, pages, most, by_node)


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, _read(children).split())
    return found


def _memory(pid: int) -> tuple[int, int]:
    """A process's share of memory: its own, and pages of files."""
    rows = (line.split() for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines())
    share = {row[0]: 1024 * int(row[1]) for row in rows if row[0].startswith("Pss")}
    own = share.get("Pss_Anon:", 0) + share.get("Pss_Shmem:", 0)
    return own, share.get("Pss_File:", 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""
