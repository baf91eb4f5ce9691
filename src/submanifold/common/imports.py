"""Fast imports of large packages."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import packages inside; their objects are also excluded from later garbage collections.

    Imports create many objects that live until the process ends. Searching them for garbage takes
    a seventh of the time of importing torch and MLflow.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()
