"""Kedro hooks that recognize files that are incomplete or have changed."""

import logging
import os
from pathlib import Path

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from submanifold.common.errors import UserError
from submanifold.common.files import is_alive, is_unchanged, mark_written, write_checksum, writer

log = logging.getLogger(__name__)


class FileHooks:
    """Keeps a checksum beside each file; Kedro's datasets write in place and check nothing.

    A file whose writing was interrupted, or that has changed, is deleted before a run that writes
    it, and is written again.
    """

    @hook_impl
    def after_catalog_created(self, catalog: CatalogProtocol) -> None:
        """Store the catalog."""
        self._catalog = catalog

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Delete files that are incomplete or have changed."""
        for name in pipeline.all_outputs():
            path = self._path(name)
            if path is None or not path.exists() or is_unchanged(path):
                continue
            if (process := writer(path)) is None or not is_alive(process):
                log.warning("%s is damaged; it is written again", path)
                path.unlink()

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Note the process that writes a file."""
        if (path := self._path(dataset_name)) is not None:
            mark_written(path, os.getpid())

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Write the checksum of a file."""
        if (path := self._path(dataset_name)) is not None:
            write_checksum(path)

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        """Compare a file with its checksum.

        Raises:
            UserError: The file has changed.
        """
        path = self._path(dataset_name)
        if path is not None and path.exists() and not is_unchanged(path):
            raise UserError(
                f"{path}: expected the content that was written, got another. Delete the file "
                "and repeat the command, which computes it again."
            )

    def _path(self, name: str) -> Path | None:
        dataset = None if name.startswith("params:") else self._catalog.get(name)
        path = getattr(dataset, "_filepath", None)
        return None if path is None or getattr(dataset, "CHECKS_FILE", False) else Path(path)
