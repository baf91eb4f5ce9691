"""Records the arguments of calls, and finds those that receive another split than their name."""

import inspect
import re
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import submanifold

PACKAGE = str(Path(submanifold.__file__).parent)
SPLIT = re.compile(r"(?:.*[_-])?(train|valid|test)")


@contextmanager
def checked_splits():
    """Check all calls of functions of the package whose arguments are maps of files.

    An argument `train`, `u_train`, ... must be a map of `train.npy`, `u_train.npy`, ... Yields the
    checked arguments as `<function>: <argument>`, to which calls add.
    """
    checked, wrong, names = set(), [], {}

    def check(frame, *_):  # of each call in Python: it returns no tracer of the lines
        code = frame.f_code
        if code not in names:
            arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            inside = code.co_filename.startswith(PACKAGE)
            names[code] = [name for name in arguments if inside and SPLIT.fullmatch(name)]
        for name in names[code]:
            if (file := file_of(frame.f_locals[name])) is not None:
                checked.add(f"{code.co_name}: {name}")
                split = SPLIT.fullmatch(file.stem)
                if split is None or split[1] != SPLIT.fullmatch(name)[1]:
                    wrong.append(f"{code.co_name}: {name} is {file.name}")

    threading.settrace(check)
    sys.settrace(check)
    try:
        yield checked
    finally:
        sys.settrace(None)
        threading.settrace(None)
    assert wrong == []


@contextmanager
def recorded(*functions):
    """Record the arguments of all calls of functions by name, wherever they are imported."""
    calls = {function.__name__: [] for function in functions}
    by_code = {inspect.unwrap(f).__code__: calls[f.__name__] for f in functions}

    def record(frame, *_):  # of each call in Python: it returns no tracer of the lines
        if frame.f_code in by_code:
            by_code[frame.f_code].append(dict(frame.f_locals))

    sys.settrace(record)
    try:
        yield calls
    finally:
        sys.settrace(None)


def file_of(array):
    """The file that an array is a map of, or None."""
    while array is not None and not hasattr(array, "filename"):
        array = getattr(array, "base", None)
    return None if array is None or array.filename is None else Path(array.filename)


def as_maps(folder, **arrays):
    """Write arrays to files of their names, and map them."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in arrays}
