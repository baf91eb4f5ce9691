"""The folder of a project and its configuration: a checkout's own conf/, or the packaged one.

Outside of a checkout every folder is a project: its artifacts are written below ``data/`` there,
and its configuration is the one that is installed with the package.
"""

import copy
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGE = "submanifold"
RAW_FOLDER = Path("data/01_raw")
PACKAGED_CONF = Path(__file__).parents[1] / "conf"
"""The configuration that is installed with the package."""


def find_checkout(folder: Path | None = None) -> Path | None:
    """Return the checkout of this project that contains a folder, by default the current one."""
    from kedro.utils import find_kedro_project

    project = find_kedro_project((folder or Path.cwd()).absolute())
    with suppress(TypeError, ValueError, KeyError):  # no project, or one of something else
        metadata = tomllib.loads(Path(project, "pyproject.toml").read_text(encoding="utf-8"))
        return project if metadata["tool"]["kedro"]["package_name"] == PACKAGE else None
    return None


def project_folder() -> Path:
    """Return the checkout that contains the current folder, or the current folder."""
    return find_checkout() or Path.cwd()


def conf_source(project: Path) -> Path:
    """Return the folder of a project's configuration."""
    return project / "conf" if find_checkout(project) == project else PACKAGED_CONF


def set_kedro_defaults() -> None:
    """Set what Kedro reads when it is imported, unless the current folder is in a checkout."""
    if find_checkout() is None:
        os.environ.setdefault("DO_NOT_TRACK", "1")  # kedro-telemetry asks only in checkouts
        os.environ.setdefault("KEDRO_LOGGING_CONFIG", str(PACKAGED_CONF / "logging.yml"))


def configure(project: Path) -> None:
    """Configure Kedro for a project, once in a process."""
    if find_checkout(project) == project:
        from kedro.framework.startup import bootstrap_project

        bootstrap_project(project)
        return
    set_kedro_defaults()
    from kedro.framework.project import configure_project

    configure_project(PACKAGE)


def session(project: Path, env: str | None, params: Mapping[str, Any]) -> Any:
    """Create a session of Kedro, as ``kedro run`` does."""
    configure(project)  # another session may have loaded the pipelines of its method
    from kedro.framework.session import KedroSession

    conf, changes = str(conf_source(project)), copy.deepcopy(dict(params))
    return KedroSession.create(project, env=env, runtime_params=changes, conf_source=conf)
