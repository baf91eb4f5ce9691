"""One experiment among many: run it, or read its cached artifacts."""

import copy
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from click import ClickException
from kedro.framework.session import KedroSession
from kedro.io import DataCatalog

from submanifold.common.errors import UserError
from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.config.project import conf_source
from submanifold.config.schema import Experiment
from submanifold.data.splits import Groups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedRun:
    """The equivalent of a `kedro run` command, whose artifacts may exist already.

    Attributes:
        name: Name of the config, followed by the changes to it.
        params: Nested runtime parameters, as `kedro run --params` takes them.
        project: Folder of the Kedro project.
        env: Kedro environment; None is the default one.
        evaluated: Whether the run includes the metrics and the report, not the model alone.
    """

    name: str
    params: Mapping[str, Any]
    project: Path
    env: str | None = None
    evaluated: bool = True

    @classmethod
    def from_config(cls, name: str, project: Path, env: str | None = None) -> "CachedRun":
        """Read ``conf/runs/<name>.yml``.

        Raises:
            UserError: The file does not exist.
        """
        path = conf_source(project) / "runs" / f"{name}.yml"
        if not path.is_file():
            known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yml")))
            raise UserError(f"{path}: expected one of {known}, got {name}.")
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(name, config["run"]["params"], project, env)

    def changed(self, parameter: str, value: Any) -> "CachedRun":
        """Return a copy with one parameter, such as ``stage_1.dim``, set to a value."""
        params = copy.deepcopy(dict(self.params))
        group = params
        *outer, last = parameter.split(".")
        for name in outer:
            group = group.setdefault(name, {})
        group[last] = value
        return replace(self, name=f"{self.name}, {parameter} {value}", params=params)

    @cached_property
    def configuration(self) -> ExperimentConfigLoader:
        """The configuration with these parameters."""
        return ExperimentConfigLoader(
            str(conf_source(self.project)),
            env=self.env,
            runtime_params=copy.deepcopy(dict(self.params)),
            **LOADER_ARGS,
        )

    @property
    def settings(self) -> Experiment:
        """The resolved settings; a UserError if they are invalid."""
        return self.configuration.experiment

    @property
    def error(self) -> str | None:
        """The message about invalid settings, None if they are valid."""
        try:
            self.settings  # noqa: B018
        except UserError as error:
            return str(error)
        return None

    @property
    def key(self) -> str:
        """Cache key of the run: equal for equal experiments, whatever their names."""
        return self.configuration.artifact_keys["run" if self.settings.ood is None else "ood_run"]

    @cached_property
    def catalog(self) -> DataCatalog:
        """The catalog of the run, built without a Kedro session, which takes longer."""
        entries = {
            name: {**entry, "filepath": str(self.project / entry["filepath"])}
            for name, entry in self.configuration["catalog"].items()
            if "filepath" in entry
        }
        return DataCatalog.from_config(entries)

    def load(self, name: str) -> Any:
        """Load an artifact of the run."""
        return self.catalog.load(name)

    @cached_property
    def groups(self) -> Groups:
        """Groups of the images; empty where images are independent."""
        return self.load("groups") if self.catalog.exists("groups") else {}

    def histories(self) -> list[dict[str, Any]]:
        """Load the training histories, in order."""
        return [self.load(f"{name}.history") for name in self.settings.phases]

    @property
    def is_finished(self) -> bool:
        """Whether the last artifacts of the run exist."""
        return all(self.catalog.exists(name) for name in self._last)

    @property
    def _last(self) -> tuple[str, ...]:
        if self.settings.ood is not None:
            return "ood_metrics", "ood_report"
        return ("metrics", "report") if self.evaluated else ("hierarchy",)

    def session(self) -> Any:
        """Create a Kedro session, as `kedro run` does."""
        params = copy.deepcopy(dict(self.params))
        conf = str(conf_source(self.project))
        return KedroSession.create(self.project, True, self.env, params, conf)

    def run(self, until: str | None = None) -> None:
        """Compute the missing artifacts, or those up to one artifact, in an MLflow run."""
        name = self.settings.pipeline if self.settings.ood is None else "ood"
        outputs = [until] if until else None if self.evaluated else list(self._last)
        with self.session() as session:
            session.run(pipeline_names=[name], to_outputs=outputs, only_missing_outputs=True)


def run_all(runs: Collection[CachedRun]) -> None:
    """Run all unfinished experiments in turn; one that fails does not stop the others.

    Raises:
        UserError: Settings are invalid; no run has started.
        ClickException: Some runs have failed.
    """
    for run in runs:
        run.settings  # noqa: B018
    waiting = [run for run in runs if not run.is_finished]
    failed: dict[str, list[str]] = {}
    for number, run in enumerate(waiting, start=1):
        log.info("Run %d of %d: %s", number, len(waiting), run.name)
        try:
            run.run()
        except ClickException as error:
            failed.setdefault(error.message, []).append(run.name)
            log.error("%s failed", run.name)
    if failed:
        reasons = [f"{', '.join(names)}: {reason}" for reason, names in failed.items()]
        number = sum(map(len, failed.values()))
        others = " The others are finished." if number < len(waiting) else ""
        reasons.append(f"{number} of {len(waiting)} runs failed.{others}")
        raise ClickException("\n".join(reasons))
