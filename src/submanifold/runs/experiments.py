"""One experiment among many: run it, or read its cached artifacts."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from click import ClickException
from kedro.io import DataCatalog, DatasetError
from torch import Tensor

from submanifold.common.device import choose_device
from submanifold.common.files import read_json, write_json
from submanifold.config.loader import ExperimentConfigLoader, file_entry, load_configuration
from submanifold.config.merge import merge
from submanifold.config.project import conf_source, configure
from submanifold.config.resolve import resolve
from submanifold.config.schema import Experiment, nest
from submanifold.data.batches import as_input
from submanifold.evaluation.baselines import evenly_spaced
from submanifold.inference.records import read_records, records_folder
from submanifold.runs.datasets import DamagedFile
from submanifold.runs.runner import run_pipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedRun:
    """The equivalent of a `kedro run` command, whose artifacts may exist already."""

    name: str  # in messages, followed by the changes
    params: Mapping[str, Any]  # nested, as `kedro run --params` takes them
    project: Path
    env: str | None = None
    evaluated: bool = True  # whether it includes the metrics and the report, not the model alone
    tables: Mapping[str, Any] | None = None  # the parameters in files, read once for many runs

    def with_params(self, params: Mapping[str, Any]) -> "CachedRun":
        """Return a copy with parameters, such as ``stage_1.dim``, set to other values."""
        changes = (f"{parameter} {value}" for parameter, value in params.items())
        name = ", ".join([self.name, *changes])
        return replace(self, name=name, params=merge(self.params, nest(params)))

    @cached_property
    def configuration(self) -> ExperimentConfigLoader:
        """The configuration with these parameters."""
        loader = load_configuration(conf_source(self.project), self.params, self.env)
        if self.tables is not None:
            loader.experiment = resolve(merge(self.tables, self.params))
        return loader

    @cached_property
    def settings(self) -> Experiment:
        """The resolved settings; a UserError if they are invalid."""
        self.configuration.validate()
        return self.configuration.experiment

    @property
    def error(self) -> str | None:
        """The message about invalid settings, None if they are valid."""
        return message_of(lambda: self.settings)

    @property
    def key(self) -> str:
        """Cache key of the run: equal for equal experiments, whatever their names."""
        return self.configuration.artifact_keys["run" if self.settings.ood is None else "ood_run"]

    @cached_property
    def catalog(self) -> DataCatalog:
        """The catalog of the run, built without a Kedro session, which takes longer."""
        catalog = self.configuration["catalog"]
        entries = {name: file_entry(entry) for name, entry in catalog.items()}
        return DataCatalog.from_config(
            {
                name: {**entry, "filepath": str(self.project / entry["filepath"])}
                for name, entry in entries.items()
                if "filepath" in entry
            }
        )

    def load(self, name: str) -> Any:
        """Load an artifact of the run; a UserError names a damaged file."""
        try:
            return self.catalog.load(name)
        except DatasetError as error:
            if isinstance(error.__cause__, DamagedFile):
                raise error.__cause__ from error
            raise

    def load_model(self, artifact: str = "hierarchy") -> Any:
        """Load a model of the run to its device."""
        return self.load(artifact).to(choose_device(self.settings.device))

    def cached(self, name: str, measure: Callable[[], Any]) -> Any:
        """Read measurements of the run, or make and write them."""
        path = self.project / "data/07_model_output" / self.key / f"{name}.json"
        if (measured := read_json(path)) is None:
            measured = measure()
            write_json(path, measured)
        return measured

    def histories(self) -> list[dict[str, Any]]:
        """Load the training histories, in order."""
        return [self.load(f"{name}.history") for name in self.settings.phases]

    def seconds(self, phases: int | None = None) -> float:
        """Sum the seconds of training of the first phases, or of all."""
        return sum(history["seconds"] for history in self.histories()[:phases])

    @property
    def is_finished(self) -> bool:
        """Whether the last artifacts of the run exist."""
        return all(map(self.catalog.exists, self._last))

    @property
    def _last(self) -> list[str]:
        if self.settings.ood is not None:
            return ["ood_metrics", "ood_report"]
        return ["metrics", "report"] if self.evaluated else ["hierarchy"]

    @property
    def finished_at(self) -> float:
        """When the model was written, in seconds since 1970."""
        return self.configuration.path("hierarchy").stat().st_mtime

    def run(self, until: str | None = None) -> None:
        """Compute the missing artifacts, or those up to one artifact, in an MLflow run."""
        name = "hierarchical" if self.settings.ood is None else "ood"
        outputs = [until] if until else None if self.evaluated else self._last
        run_pipeline(self.project, name, self.params, self.env, outputs)


def load_events(model: Path, count: int) -> tuple[Tensor | None, Tensor | None]:
    """Load training and validation events of a run by its model file, None if there are none."""
    project, names = records_folder(), ("x_train", "x_valid")
    for record in read_records(project):
        if (project / record.model).resolve() == model.resolve():
            configure(project)
            run = CachedRun(record.name, record.params, project)
            keys = {} if run.error else run.configuration.artifact_keys
            if keys.get("model") == record.key and all(map(run.catalog.exists, names)):
                first, second = (evenly_spaced(run.load(name), count) for name in names)
                return as_input(first.x), as_input(second.x)
    return None, None


def message_of(check: Callable[[], object]) -> str | None:
    """Return the message of the user's mistake that a check raises; None if it raises none."""
    try:
        check()
    except ClickException as error:
        return str(error)
    return None


def run_all(runs: Collection[CachedRun]) -> None:
    """Run all unfinished experiments in turn; one that fails does not stop the others."""
    for run in runs:
        run.settings  # noqa: B018  a UserError before any run, if they are invalid
    waiting = [run for run in runs if not run.is_finished]
    failed = []
    for number, run in enumerate(waiting, start=1):
        log.info("Run %d of %d: %s", number, len(waiting), run.name)
        try:
            run.run()
        except ClickException as error:
            failed.append(run.name)
            log.error("%s: %s", run.name, error.message)
    if failed:
        raise ClickException(f"{len(failed)} of {len(waiting)} runs failed: {', '.join(failed)}.")
