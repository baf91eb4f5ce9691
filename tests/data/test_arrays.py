"""Arrays on disk."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from submanifold.data.arrays import map_npy, write_npy

ARRAY = np.arange(12, dtype=np.float32).reshape(6, 2)


def chunks():
    yield ARRAY[:4]
    yield ARRAY[4:].astype(float)


def test_an_array_is_written_once(tmp_path):
    path = tmp_path / "new" / "u.npy"
    array = write_npy(path, chunks(), (6, 2))
    assert (array.dtype, isinstance(array, np.memmap)) == (np.float32, True)
    assert np.array_equal(array, ARRAY)
    unused = iter(chunks())
    assert np.array_equal(write_npy(path, unused, (6, 2)), ARRAY)
    assert len(list(unused)) == 2
    assert [file.name for file in path.parent.iterdir()] == ["u.npy"]
    array[:] = 0  # copy-on-write
    assert np.array_equal(np.load(path), ARRAY)


@pytest.mark.parametrize("length", [0, 5, 60, 128, 175])
def test_a_truncated_file_is_written_again(tmp_path, caplog, length):
    path = tmp_path / "u.npy"
    write_npy(path, chunks(), (6, 2))
    path.write_bytes(path.read_bytes()[:length])
    assert map_npy(path) is None
    with caplog.at_level(logging.WARNING, "submanifold"):
        assert np.array_equal(write_npy(path, chunks(), (6, 2)), ARRAY)
    assert "u.npy is damaged" in caplog.text


@pytest.mark.fault
def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path):
    """The process of a memory map would be killed by SIGBUS."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from submanifold.data.arrays import write_npy
from submanifold.common.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_npy(Path(sys.argv[1]), (np.ones((10, 100)) for _ in range(10)), (100, 100))
except UserError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "u.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert f"u.npy cannot be written: {tmp_path} is full (File too" in done.stdout
    assert list(tmp_path.iterdir()) == []
