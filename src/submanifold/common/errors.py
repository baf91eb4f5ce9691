"""The exception for mistakes that a user can fix."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An invalid setting, path or file.

    The command line prints the message without a traceback. Libraries name their own argument
    (``dim=9``); callers that read the argument from a setting prepend its group with
    :func:`error_prefix`.

    Example:
        >>> with error_prefix("stage_1"):
        ...     raise UserError("dim: expected at most 8, got 9.")
        Traceback (most recent call last):
            ...
        submanifold.common.errors.UserError: stage_1.dim: expected at most 8, got 9.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the known name that is closest to a name, empty if none is close.

    Example:
        >>> did_you_mean("mnits", ["mnist", "photos"])
        ' Did you mean mnist?'
    """
    close = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {close[0]}?" if close else ""


@contextmanager
def error_prefix(prefix: str) -> Iterator[None]:
    """Prepend ``<prefix>.`` to the message of any :class:`UserError` raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}.{error}") from error
