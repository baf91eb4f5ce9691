"""Arrays on disk."""

import numpy as np

from submanifold.data.arrays import load_events, write_chunks

ARRAY = np.arange(12, dtype=np.float32).reshape(6, 2)


def write(path):
    write_chunks(path, (chunk for chunk in (ARRAY[:4], ARRAY[4:].astype(float))), (2,), np.float32)


def test_an_array_is_written_in_chunks_and_mapped_copy_on_write(tmp_path):
    path = tmp_path / "new" / "u.npy"
    write(path)
    assert [file.name for file in path.parent.iterdir()] == ["u.npy"]
    array = load_events(path).x
    assert (array.dtype, isinstance(array, np.memmap)) == (np.float32, True)
    assert np.array_equal(array, ARRAY)
    array[:] = 0
    assert np.array_equal(np.load(path), ARRAY)
