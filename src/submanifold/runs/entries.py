"""What the entries of the catalog are to MLflow, and where their files are."""

import logging
from pathlib import Path

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

log = logging.getLogger(__name__)

SUMMARIES = (["compare"], ["sweep"], ["study"])
"""Pipelines that train nothing and summarize other runs."""


def kind_of(catalog: CatalogProtocol, name: str) -> str | None:
    """Return what an entry of the catalog is to MLflow.

    ``metadata: {mlflow: <kind>}`` of the entry is ``artifact``, ``page`` (an artifact whose path is
    printed at the end of a run), ``metrics`` (an artifact whose numbers are logged), ``model``, or
    ``history`` (of a training).
    """
    return (getattr(catalog.get(name), "metadata", None) or {}).get("mlflow")


def log_pages(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Log the paths of the pages that a pipeline writes."""
    for name in sorted(pipeline.all_outputs()):
        if kind_of(catalog, name) == "page":
            log.info("The %s is %s", name.replace("_", " "), path_of(catalog, name))


def path_of(catalog: CatalogProtocol, name: str) -> Path:
    """Return the path of an entry."""
    return Path(catalog[name]._filepath)
