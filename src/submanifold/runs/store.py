"""MLflow's tracking store: creation, checks, and messages if it cannot be used."""

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from sqlalchemy import NullPool, create_engine, inspect
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from submanifold.common.errors import UserError
from submanifold.common.files import DISK_FULL, READ_ONLY, atomic_write, locked
from submanifold.common.settings import Settings, read_settings

SQLITE = "sqlite:///"
SQLITE_TIMEOUT = 20.0  # seconds to wait for a locked database
RETRIES = "3"  # of a request, some seconds; MLflow's default takes minutes


class MlflowSettings(Settings):
    """The settings in ``conf/base/mlflow.yml``.

    Attributes:
        uri: Tracking URI.
        experiment: Name of the experiment.
        artifact_location: Where a new experiment stores its artifacts, unless a server does.
        tags: Tags of a new experiment.
    """

    uri: str
    experiment: str
    artifact_location: str
    tags: dict[str, str] | None = None


def connect(settings: Mapping[str, Any]) -> None:
    """Let MLflow use the store and the experiment of a project, which are created if missing.

    Args:
        settings: The content of ``mlflow.yml``.

    Raises:
        UserError: The settings are invalid, or the store cannot be used.
    """
    chosen = read_settings(MlflowSettings, settings, "mlflow")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
    prepare_store(chosen.uri)
    with required():
        mlflow.set_tracking_uri(chosen.uri)
        if mlflow.get_experiment_by_name(chosen.experiment) is None:
            location = None if chosen.uri.startswith("http") else chosen.artifact_location
            mlflow.create_experiment(chosen.experiment, location, chosen.tags)
        mlflow.set_experiment(chosen.experiment)


@contextmanager
def required() -> Iterator[None]:
    """Raise a :class:`UserError` if MLflow fails."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_store_failure(error):
            raise
        raise UserError(unusable_message(mlflow.get_tracking_uri(), error)) from error


def prepare_store(uri: str) -> None:
    """Create a missing SQLite database, and connect once to an existing database of any kind.

    MLflow creates a database by many migrations in place, which leave it unusable if they are
    interrupted or run twice at once; here the file appears when it is complete. MLflow also retries
    failed connections for minutes. Tracking servers are left to MLflow.

    Raises:
        UserError: The database cannot be opened or created.
    """
    path = _sqlite_file(uri)
    try:
        if path is not None and not path.exists():
            with locked(path.parent, path.name):
                if not path.exists():
                    with atomic_write(path) as partial:
                        partial.touch()
                        check_writable(f"{SQLITE}{partial}")
                        mlflow.MlflowClient(tracking_uri=f"{SQLITE}{partial}").search_experiments()
        try:
            engine = create_engine(uri, poolclass=NullPool)
        except (ArgumentError, NoSuchModuleError):  # not a database
            return
        with engine.connect() as connection:
            inspect(connection).get_table_names()
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise UserError(unusable_message(uri, error)) from error


def check_writable(uri: str) -> None:
    """Check that a SQLite database is not locked and has space for a megabyte.

    Raises:
        UserError: The database is locked or read-only, or its disk is full.
    """
    path = _sqlite_file(uri)
    if path is None:
        return
    try:
        with closing(sqlite3.connect(path, SQLITE_TIMEOUT, isolation_level=None)) as database:
            database.execute("PRAGMA cache_size = 10")  # write to disk rather than to memory
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE test (bytes BLOB)")
            database.execute("INSERT INTO test VALUES (zeroblob(1048576))")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise UserError(unusable_message(uri, error)) from error


def _sqlite_file(uri: str) -> Path | None:
    path = Path(uri.removeprefix(SQLITE))
    return path if uri.startswith(SQLITE) and path.name not in ("", ":memory:") else None


def is_store_failure(error: BaseException) -> bool:
    """Return whether MLflow's server, database or folder failed, rather than the caller."""
    if isinstance(error, UnsupportedModelRegistryStoreURIException):
        return True
    if isinstance(error, MlflowException):
        return error.error_code != "INVALID_PARAMETER_VALUE"
    is_disk_error = isinstance(error, OSError) and error.errno in (*DISK_FULL, *READ_ONLY)
    return is_disk_error or isinstance(error, SQLAlchemyError)


def unusable_message(uri: str, error: BaseException) -> str:
    """Return the message for a tracking URI that cannot be used."""
    return without_password(
        f"mlflow.uri={uri} cannot be used ({root_cause(error)}). Its server may not be running, "
        "another program may lock its database, or its disk may be full or read-only. Fix this, or "
        "set another URI in MLFLOW_TRACKING_URI or as uri in conf/base/mlflow.yml"
    )


def without_password(text: str) -> str:
    """Replace passwords in URIs.

    Example:
        >>> without_password("http://me:secret@host:5000")
        'http://me:***@host:5000'
    """
    return re.sub(r"(?<=://)([^/@\s]*?):[^/@\s]*@", r"\1:***@", text)


def root_cause(error: BaseException) -> str:
    """Return the first line of the error that caused a chain of errors."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error).partition("\n")[0]
