"""The exception for mistakes that a user can fix."""

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from click import ClickException

MAX_NAMES = 10  # that a message lists


def printable(text: str) -> str:
    """Escape invisible characters and bytes that are not UTF-8 in a file name, once."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_name(name: str) -> str:
    r"""Escape a file name as :func:`printable`, and a first character that starts a formula.

    Example:
        >>> print(table_name("=1"))
        \x3d1
    """
    if name.startswith(("=", "+", "-", "@")):
        name = f"\\x{ord(name[0]):02x}{name[1:]}"
    return printable(name)


class UserError(ClickException, ValueError):
    """An invalid setting, path or file.

    The command line, also Kedro's, prints the message without a traceback. Libraries name their
    own argument (``dim: expected ...``); callers that read the argument from a setting prepend its
    group with :func:`error_prefix`.
    """

    def format_message(self) -> str:
        """Return the message, in which names of files are escaped."""
        return printable(self.message)


class MissingPackageError(UserError):
    """A package of an extra is not installed, whatever setting needs it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the sentence " Did you mean ...?" with the closest known name, empty if none is."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {close[0]}?" if close else ""


def list_names(names: Iterable[str], name: str = "") -> str:
    """Join names for a message, of more than ten the ones most similar to a wrong name.

    Example:
        >>> list_names("abc"), list_names("abcdefghijkl", "l")[-12:]
        ('a, b, c', ' or 2 others')
    """
    names = list(names)
    shown = difflib.get_close_matches(name, names, MAX_NAMES, cutoff=0)
    if len(names) <= MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(shown)} or {len(names) - len(shown)} others"


@contextmanager
def error_prefix(prefix: str) -> Iterator[None]:
    """Prepend ``<prefix>.`` to the message of any :class:`UserError` of a setting raised inside."""
    try:
        yield
    except MissingPackageError:
        raise
    except UserError as error:
        raise UserError(f"{prefix}.{error}") from error


def unexpected(
    name: object, expected: str, got: object, fix: str = "", hint: str = ""
) -> UserError:
    """Return the error of a setting, an argument or a file, in the form of all messages."""
    return UserError(f"{name}: expected {expected}, got {got}.{hint}{fix and f' {fix}.'}")


def import_extra(name: str, extra: str) -> ModuleType:
    """Import a package, such as ``torch_fidelity``, of an extra, such as ``fid``."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the package is installed, but not all that it imports
            raise
        fix = f"Install it with pip install 'submanifold[{extra}]'"
        expected = "expected this package, which is not installed"
        raise MissingPackageError(f"{name}: {expected}. {fix}.") from error
