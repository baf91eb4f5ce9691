"""Arrays on disk: whole or made anew."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from submanifold.data.arrays import map_npy, write_npy

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


def chunks():
    yield ROWS[:4]
    yield ROWS[4:].astype(float)


def never():
    raise AssertionError("the file is there")
    yield


def test_rows_are_written_once(tmp_path):
    path = tmp_path / "new" / "u.npy"
    array = write_npy(path, chunks(), (6, 2))
    assert (array.dtype, isinstance(array, np.memmap)) == (np.float32, True)
    assert np.array_equal(array, ROWS)
    assert np.array_equal(np.load(path), ROWS)
    assert np.array_equal(write_npy(path, never(), (6, 2)), ROWS)
    assert [file.name for file in path.parent.iterdir()] == ["u.npy"]
    array[:] = 0  # copy-on-write
    assert np.array_equal(np.load(path), ROWS)


@pytest.mark.parametrize("length", [0, 5, 60, 128, 175])
def test_a_truncated_file_is_made_anew_and_the_log_says_so(tmp_path, caplog, length):
    path = tmp_path / "u.npy"
    write_npy(path, chunks(), (6, 2))
    path.write_bytes(path.read_bytes()[:length])
    assert map_npy(path) is None
    with caplog.at_level(logging.WARNING, "submanifold"):
        assert np.array_equal(write_npy(path, chunks(), (6, 2)), ROWS)
    assert "u.npy is not whole" in caplog.text
    assert "made anew" in caplog.text


def test_a_file_of_another_shape_or_type_is_made_anew(tmp_path, caplog):
    path = tmp_path / "u.npy"
    for other in (ROWS[:3], ROWS.astype(np.float64)):
        np.save(path, other)
        with caplog.at_level(logging.WARNING, "submanifold"):
            assert np.array_equal(write_npy(path, chunks(), (6, 2)), ROWS)
        assert "made anew" in caplog.text


@pytest.mark.parametrize("shape", [(7, 2), (5, 2), (6, 3)])
def test_chunks_that_do_not_fill_the_shape_leave_no_file(tmp_path, shape):
    with pytest.raises(ValueError, match="chunks of 6 rows do not fill the shape"):
        write_npy(tmp_path / "u.npy", chunks(), shape)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path):
    """A memory map's process would be killed by SIGBUS, or finds the disk full after the fact."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from submanifold.data.arrays import write_npy
from submanifold.common.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
np.lib.format.open_memmap = None
try:
    write_npy(Path(sys.argv[1]), (np.ones((10, 100)) for _ in range(10)), (100, 100))
except UserError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "u.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert f"u.npy cannot be written: {tmp_path} is full (File too" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_write_one_file(tmp_path):
    code = """
import sys, time
from pathlib import Path
import numpy as np
from submanifold.data.arrays import write_npy
def chunks():
    print("writing", flush=True)
    for _ in range(10):
        time.sleep(0.05)
        yield np.full((1, 2), float(sys.argv[2]))
array = write_npy(Path(sys.argv[1]), chunks(), (10, 2))
print(sorted(set(array.ravel().tolist())))
"""
    commands = [[sys.executable, "-c", code, str(tmp_path / "u.npy"), n] for n in "12"]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert sum("writing" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1
