"""MLflow's database, which nobody sees before it is whole."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.store.db import utils
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from submanifold.errors import UserError
from submanifold.files import locked, whole

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"


def create_store(uri: str) -> None:
    """Make the SQLite database that a tracking URI names, unless there is one.

    MLflow makes it in place, by dozens of migrations; killed in the middle, or done by two at
    once, they leave a database that no later run can open. One of those that holds no run is set
    aside here. Other URIs are left to MLflow.

    Raises:
        UserError: If the file is no database.
    """
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.name in ("", ":memory:") or _is_usable(path):
        return
    with locked(path.parent, path.name):
        if _is_usable(path):  # another run has made it meanwhile
            return
        if path.exists():
            aside = path.replace(path.with_name(f"{path.name}.half"))
            log.warning("%s was made only by half and holds no run: it is now %s", path, aside)
        with whole(path, keep=True) as partial:
            _make(partial)


def _make(path: Path) -> None:
    uri = f"{SQLITE}{path}"
    SqlAlchemyStore(uri, str(path.parent / "mlartifacts"))
    SqlAlchemyStore._engine_map.pop(uri).dispose()


def _is_usable(path: Path) -> bool:
    """Whether it holds runs, or all its migrations are done."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if "runs" in tables and any(database.execute("SELECT 1 FROM runs LIMIT 1")):
                return True
            if "alembic_version" not in tables:
                return False
            version = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"uri={SQLITE}{path} cannot be opened as a database ({error}); move the file away, or "
            "name another in conf/base/mlflow.yml"
        ) from error
    return version == (utils._get_latest_schema_revision(),)
