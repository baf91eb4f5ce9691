"""Packages that are installed with an extra of this one."""

import importlib
from types import ModuleType

from submanifold.common.errors import UserError


def import_extra(name: str, extra: str) -> ModuleType:
    """Import a package, such as ``optuna``, of an extra, such as ``search``."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{name}: expected this package, which is not installed. Install it with "
            f"pip install 'submanifold[{extra}]'."
        ) from error
