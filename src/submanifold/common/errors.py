"""The exception for mistakes that a user can fix."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from click import ClickException


def printable(text: str) -> str:
    r"""Escape a file name for messages, pages and manifests: one line of valid UTF-8.

    Escapes bytes that are not UTF-8 (lone surrogates in Python) and invisible characters. Escaping
    twice changes nothing.

    Example:
        >>> print(printable("a\nb"))
        a\nb
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(ClickException, ValueError):
    """An invalid setting, path or file.

    The command line, also Kedro's, prints the message without a traceback. Libraries name their
    own argument (``dim=9``); callers that read the argument from a setting prepend its group with
    :func:`error_prefix`.

    Example:
        >>> with error_prefix("stage_1"):
        ...     raise UserError("dim: expected at most 8, got 9.")
        Traceback (most recent call last):
            ...
        submanifold.common.errors.UserError: stage_1.dim: expected at most 8, got 9.
    """

    def format_message(self) -> str:
        """Return the message, in which names of files are escaped."""
        return printable(self.message)


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
