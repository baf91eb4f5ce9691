"""Records the arguments of calls."""

import inspect
import sys
from contextlib import contextmanager


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
