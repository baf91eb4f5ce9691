"""The exception for mistakes that a user can fix."""

from collections.abc import Iterator
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


@contextmanager
def error_prefix(prefix: str) -> Iterator[None]:
    """Prepend ``<prefix>.`` to the message of any :class:`UserError` raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}.{error}") from error
