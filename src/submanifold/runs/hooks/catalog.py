"""What the catalog's ``metadata: {mlflow: <kind>}`` defines for the entries of a pipeline.

The kinds are ``artifact``, ``page`` (an artifact whose path is printed at the end of a run),
``metrics`` (an artifact whose numbers are logged), ``model`` and ``history`` (of a training).
"""

import logging
from pathlib import Path

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

log = logging.getLogger(__name__)


def outputs_by_kind(pipeline: Pipeline, catalog: CatalogProtocol) -> dict[str, str]:
    """Return the kind of each output of a pipeline that exists and has one, sorted by name."""
    kinds = {name: _kind(catalog, name) for name in sorted(pipeline.all_outputs())}
    return {name: kind for name, kind in kinds.items() if kind and catalog.exists(name)}


def _kind(catalog: CatalogProtocol, name: str) -> str | None:
    return (getattr(catalog.get(name), "metadata", None) or {}).get("mlflow")


def log_pages(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Log the paths of the pages that a pipeline writes."""
    for name in sorted(pipeline.all_outputs()):
        if _kind(catalog, name) == "page":
            log.info("The %s is %s", name.replace("_", " "), path_of(catalog, name))


def path_of(catalog: CatalogProtocol, name: str) -> Path:
    """Return the path of an entry."""
    return Path(catalog[name]._filepath)
