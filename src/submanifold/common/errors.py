"""The one exception that means: the user can mend this."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A setting, a path or a file that cannot work.

    The message says what was wrong, what is allowed, and where to change it. A lower room speaks of
    its own arguments, such as ``dim=9``; who read the argument from somewhere puts that before it
    (:func:`error_prefix`). The command line shows the message alone, without a traceback.
    """


@contextmanager
def error_prefix(prefix: str) -> Iterator[None]:
    """Put a parameter's name before what a lower room says of its own argument."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}.{error}") from error
