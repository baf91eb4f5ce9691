"""Whether prepared arrays are still what was made: disks turn bits without an error."""

import hashlib
import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from submanifold.common.files import read_json
from submanifold.data.settings import PARTS
from submanifold.data.stores import Stamp, stamp

log = logging.getLogger(__name__)

BLOCK = 2**20
WORTH_A_LINE = 2**30


def hash_arrays(folder: Path) -> str:
    """Hash of the names, shapes and bytes of a folder's train.npy, valid.npy and test.npy.

    A process reads them again when their sizes, times or inodes have changed: the check of a
    million images, 3 GB, takes some seconds, once in each run.

    Raises:
        OSError, ValueError: If they cannot be read.
    """
    files = [folder.absolute() / f"{part}.npy" for part in PARTS]
    return _hash(tuple((file, stamp(file.stat())) for file in files))


def is_as_made(folder: Path) -> bool:
    """Whether the arrays in a folder have the hash that its manifest.json says, if it has one."""
    made = (read_json(folder / "manifest.json") or {}).get("hash")
    try:
        return made is None or made == hash_arrays(folder)
    except (OSError, ValueError):  # a bad block of the disk, or no array
        return False


@lru_cache(maxsize=64)
def _hash(files: Iterable[tuple[Path, Stamp]]) -> str:
    if sum(each.size for _, each in files) > WORTH_A_LINE:
        log.info("reading the arrays once, to know that they are as they were made")
    digest = hashlib.sha256()
    for path, _ in files:
        array = np.load(path, mmap_mode="r")
        digest.update(f"{path.stem} {array.shape}".encode())
        with open(path, "rb", buffering=0) as file:  # a bad block in a map would kill the process
            file.seek(array.offset)
            while block := file.read(BLOCK):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"
