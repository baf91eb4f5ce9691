"""Paths of the catalog's entries, and the pages that a run writes."""

import logging
from pathlib import Path

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

log = logging.getLogger(__name__)


def log_pages(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Log the paths of the pages (``*.html``) that a pipeline writes."""
    for name in sorted(pipeline.all_outputs()):
        if (path := path_of(catalog, name)).suffix == ".html":
            log.info("The %s is %s", name.replace("_", " "), path)


def path_of(catalog: CatalogProtocol, name: str) -> Path:
    """Return the path of an entry."""
    return Path(catalog[name]._filepath)
