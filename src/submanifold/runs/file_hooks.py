"""Kedro hooks that recognize files that are incomplete or have changed."""

import logging
import os
from pathlib import Path

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from submanifold.common.errors import UserError
from submanifold.common.files import (
    checksum_path,
    file_checksum,
    is_alive,
    is_unchanged,
    make_folder,
    write_checksum,
)

log = logging.getLogger(__name__)


class FileHooks:
    """Keeps a checksum next to each file; Kedro's datasets write in place and check nothing.

    While a file is written, its process is noted in place of the checksum. A file whose writing was
    interrupted, or that has changed, is deleted before a run that writes it.
    """

    @hook_impl
    def after_catalog_created(self, catalog: CatalogProtocol) -> None:
        """Store the catalog."""
        self._catalog = catalog

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Delete files that are incomplete or have changed."""
        for path in filter(None, map(self._path, pipeline.all_outputs())):
            if path.exists() and (note := checksum_path(path)).exists():
                text = note.read_text()
                is_written = text.isdigit() and is_alive(int(text))
                if not is_written and text != file_checksum(path):
                    log.warning("%s is damaged; it is written again", path)
                    path.unlink()
                    note.unlink()

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Note the process that writes a file."""
        if path := self._path(dataset_name):
            make_folder(path.parent)
            checksum_path(path).write_text(str(os.getpid()))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Write the checksum of a file."""
        if path := self._path(dataset_name):
            write_checksum(path)

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        """Compare a file with its checksum.

        Raises:
            UserError: The file has changed.
        """
        path = self._path(dataset_name)
        if path and path.exists() and not is_unchanged(path):
            raise UserError(
                f"{path}: expected the content that was written, got another. Delete the file "
                "and repeat the command, which computes it again."
            )

    def _path(self, name: str) -> Path | None:
        dataset = None if name.startswith("params:") else self._catalog.get(name)
        path = getattr(dataset, "_filepath", None)
        return None if path is None or getattr(dataset, "CHECKS_FILE", False) else Path(path)
