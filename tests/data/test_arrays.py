"""Arrays on disk."""

import subprocess
import sys

import numpy as np
import pytest

from submanifold.data.arrays import load_npy, map_npy, write_chunks

ARRAY = np.arange(12, dtype=np.float32).reshape(6, 2)


def write(path):
    write_chunks(path, (chunk for chunk in (ARRAY[:4], ARRAY[4:].astype(float))), (2,), np.float32)


def test_an_array_is_written_in_chunks_and_mapped_copy_on_write(tmp_path):
    path = tmp_path / "new" / "u.npy"
    write(path)
    assert [file.name for file in path.parent.iterdir()] == ["u.npy"]
    array = load_npy(path)
    assert (array.dtype, isinstance(array, np.memmap)) == (np.float32, True)
    assert np.array_equal(array, ARRAY)
    array[:] = 0
    assert np.array_equal(np.load(path), ARRAY)


@pytest.mark.parametrize("length", [0, 5, 60, 128, 175])
def test_a_truncated_file_is_recognized(tmp_path, length):
    path = tmp_path / "u.npy"
    write(path)
    path.write_bytes(path.read_bytes()[:length])
    assert map_npy(path) is None


@pytest.mark.fault
def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path):
    """The process of a memory map would be killed by SIGBUS."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from submanifold.data.arrays import write_chunks
from submanifold.common.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_chunks(Path(sys.argv[1]), (np.ones((10, 100)) for _ in range(10)), (100,), np.float32)
except UserError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "u.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert f"u.npy cannot be written: {tmp_path} is full (File too" in done.stdout
    assert list(tmp_path.iterdir()) == []
