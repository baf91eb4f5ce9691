"""MLflow's database, which nobody sees before it is whole."""

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _tracking_store_registry
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import SQLAlchemyError

from submanifold.common.errors import UserError
from submanifold.common.files import DISK_FULL, READ_ONLY, atomic_write, locked

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
WAIT = 20.0  # seconds that another program may hold a database locked, as for MLflow


def create_store(uri: str) -> None:
    """Make the SQLite database that a tracking URI names, unless there is one; try another's.

    MLflow makes it in place, by dozens of migrations; killed in the middle, or done by two at
    once, they leave a database that no later run can open. One of those that holds no run is set
    aside here. Servers are left to MLflow.

    Raises:
        UserError: If MLflow does not know the URI's scheme; if the file is no database, or cannot
            be opened or made; if another database takes no connection, or its driver is not
            installed.
    """
    try:
        _tracking_store_registry.get_store_builder(uri)
    except UnsupportedModelRegistryStoreURIException as error:
        raise UserError(
            f"uri={without_password(uri)} cannot be used: expected a path, or a URI that begins "
            f"with {', '.join(filter(None, error.supported_uri_schemes))}. Change "
            "MLFLOW_TRACKING_URI, or server.mlflow_tracking_uri in conf/base/mlflow.yml"
        ) from error
    path = _file(uri)
    if path is None and re.split(r"[+:]", uri)[0] in {*DATABASE_ENGINES} - {"sqlite"}:
        _try_connection(uri)
    if path is None or _is_usable(path):
        return
    with locked(path.parent, path.name):
        if _is_usable(path):  # another run has made it meanwhile
            return
        if path.exists():
            aside = path.replace(path.with_name(f"{path.name}.half"))
            log.warning("%s was made only by half and holds no run: it is now %s", path, aside)
        with atomic_write(path, keep=True) as partial:
            partial.touch()  # MLflow tries for minutes where it cannot
            _try_room(partial, uri)
            try:
                _make(partial)
            except (MlflowException, SQLAlchemyError) as error:
                raise UserError(out_of_reach(uri, error)) from error


def check_room(uri: str) -> None:
    """See whether a SQLite database takes a megabyte, and take it back.

    Raises:
        UserError: If it does not: it is locked, or its disk is full or may only be read.
    """
    path = _file(uri)
    if path is not None:
        _try_room(path, uri)


def _try_connection(uri: str) -> None:
    """Connect once, where MLflow would try for two minutes."""
    try:
        create_engine(uri, poolclass=NullPool).connect().close()
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(out_of_reach(uri, error)) from error


def _try_room(path: Path, uri: str) -> None:
    try:
        with closing(sqlite3.connect(path, WAIT, isolation_level=None)) as database:
            database.execute("PRAGMA cache_size = 10")  # or all of it would stay in memory
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE room (bytes BLOB)")
            database.execute("INSERT INTO room VALUES (zeroblob(1048576))")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise UserError(out_of_reach(uri, error)) from error


def _file(uri: str) -> Path | None:
    """The file of a SQLite database, or None."""
    path = Path(uri.removeprefix(SQLITE))
    return path if uri.startswith(SQLITE) and path.name not in ("", ":memory:") else None


def is_out_of_reach(error: BaseException) -> bool:
    """Whether MLflow's server, database or folder has failed, and not what was asked of it."""
    if isinstance(error, MlflowException):
        return error.error_code != "INVALID_PARAMETER_VALUE"
    is_of_disk = isinstance(error, OSError) and error.errno in (*DISK_FULL, *READ_ONLY)
    return is_of_disk or isinstance(error, SQLAlchemyError)


def out_of_reach(uri: str, error: BaseException) -> str:
    """Say that MLflow's database or server cannot be used, and what to do about it."""
    return (
        f"uri={without_password(uri)} cannot be used ({root_of(error)}). Its server may not be "
        "running, another program may hold its database locked, or its disk is full or may only be "
        "read: mend that, or name another in MLFLOW_TRACKING_URI, or as server.mlflow_tracking_uri "
        "in conf/base/mlflow.yml"
    )


def without_password(uri: str) -> str:
    """Leave out the password of a tracking URI, as messages and logs show it."""
    return re.sub(r"(?<=://)([^/@]*?):[^/@]*@", r"\1:***@", uri)


def root_of(error: BaseException) -> str:
    """What was first wrong, in one line: MLflow's errors hold those of others."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return str(error).partition("\n")[0]


def _make(path: Path) -> None:
    uri = f"{SQLITE}{path}"
    SqlAlchemyStore(uri, str(path.parent / "mlartifacts"))
    SqlAlchemyStore._engine_map.pop(uri).dispose()


def _is_usable(path: Path) -> bool:
    """Whether it holds runs, or all its migrations are done."""
    if not path.exists():
        return False
    # what a killed process has half written is only taken back by one that may write
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, WAIT, uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if "runs" in tables and any(database.execute("SELECT 1 FROM runs LIMIT 1")):
                return True
            if "alembic_version" not in tables:
                return False
            version = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        raise UserError(out_of_reach(f"{SQLITE}{path}", error)) from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"uri={SQLITE}{path} cannot be opened as a database ({error}); move the file away, or "
            "name another in conf/base/mlflow.yml"
        ) from error
    return version == (utils._get_latest_schema_revision(),)
