"""Kedro's runner for several processes, which torchrun starts."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import torch
import torch.distributed as dist
from kedro.io import CatalogProtocol, DatasetError
from kedro.pipeline import Pipeline
from kedro.runner import AbstractRunner

from submanifold.common import distributed
from submanifold.common.threads import use_threads
from submanifold.config.project import session
from submanifold.runs.checks import select_missing
from submanifold.runs.datasets import DamagedFile

log = logging.getLogger(__name__)
TIMEOUT = timedelta(days=7)  # the first rank may prepare data for hours while the others wait


class RankRunner(AbstractRunner):
    """Runs nodes tagged ``distributed`` on all ranks, and the other nodes on the first.

    All ranks run the same command: ``torchrun --nproc-per-node=2 -m submanifold run ...``. The
    first rank chooses the nodes with missing outputs, and it alone saves datasets and calls hooks
    of nodes. Without torchrun this is Kedro's ``SequentialRunner``.
    """

    def run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        hook_manager: Any = None,
        run_id: str | None = None,
        only_missing_outputs: bool = False,
    ) -> dict[str, Any]:
        """Run a pipeline in a process group of all ranks, and choose the number of threads.

        A damaged file that is found meanwhile is computed again if outputs may be missing. Ctrl-C
        ends the MLflow run as KILLED: it calls no hook, and MLflow would take the run for finished.
        """
        try:
            return self._run_on_ranks(pipeline, catalog, hook_manager, run_id, only_missing_outputs)
        except KeyboardInterrupt:
            mlflow.end_run("KILLED")
            raise

    def _run_on_ranks(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        hook_manager: Any,
        run_id: str | None,
        only_missing_outputs: bool,
    ) -> dict[str, Any]:
        damaged = set[Path]()
        with process_group(), use_threads(catalog.load("params:threads")):
            if not only_missing_outputs:
                return super().run(pipeline, catalog, hook_manager, run_id)
            while True:
                missing = self._missing(pipeline, catalog)
                try:
                    return super().run(missing, catalog, hook_manager, run_id)
                except DatasetError as error:  # of the catalog
                    file = error.__cause__
                    if not isinstance(file, DamagedFile) or file.path in damaged:
                        raise
                    if distributed.world_size() > 1:  # other ranks have not seen the error
                        raise
                    damaged.add(file.path)
                    log.warning("%s", file.message)

    def _missing(self, pipeline: Pipeline, catalog: CatalogProtocol) -> Pipeline:
        names = [list[str]()]
        if distributed.rank() == 0:
            names = [[node.name for node in select_missing(pipeline, catalog).nodes]]
            if existing := len(pipeline.nodes) - len(names[0]):
                log.info("Skipping %d nodes, whose outputs exist", existing)
        if distributed.world_size() > 1:
            dist.broadcast_object_list(names)
        return pipeline.filter(node_names=names[0]) if names[0] else Pipeline([])

    def _get_executor(self, max_workers: int) -> None:
        return None

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        hook_manager: Any = None,
        run_id: str | None = None,
    ) -> None:
        if distributed.world_size() == 1:
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        for node in pipeline.nodes:
            is_shared = "distributed" in node.tags
            if distributed.rank() == 0:
                with nullcontext() if is_shared else distributed.alone():
                    super()._run(Pipeline([node]), catalog, hook_manager, run_id)
            elif is_shared:
                node.run({name: catalog.load(name) for name in node.inputs})
            distributed.barrier()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun describes in environment variables, if it does."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: torchrun ends the other ranks


def run_pipeline(
    project: Path,
    pipeline: str,
    params: Mapping[str, Any],
    env: str | None = None,
    to_outputs: Sequence[str] | None = None,
) -> None:
    """Compute the missing outputs of a pipeline in this process, at most up to some of them."""
    with session(project, env, params) as kedro:
        kedro.run(
            pipeline_names=[pipeline],
            runner=RankRunner(),
            to_outputs=to_outputs,
            only_missing_outputs=True,
        )
