"""One experiment of many: its settings, what of it is on disk, and how it is run."""

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
from submanifold.data.groups import Groups

log = logging.getLogger(__name__)

RECIPES = Path("conf/runs")


@dataclass(frozen=True)
class Experiment:
    """What `kedro run` would do with these parameters in this environment.

    Attributes:
        name: Of the recipe, with what was changed in it.
        params: As on the command line of `kedro run`, nested.
        project: Folder of the project.
        env: Environment of the configuration; None is the default one.
        evaluated: Whether it goes on to metrics and report once its model is trained.
    """

    name: str
    params: Mapping[str, Any]
    project: Path
    env: str | None = None
    evaluated: bool = True

    @classmethod
    def from_recipe(cls, name: str, project: Path, env: str | None = None) -> "Experiment":
        """Read `conf/runs/<name>.yml`.

        Raises:
            UserError: There is no such recipe.
        """
        path = project / RECIPES / f"{name}.yml"
        if not path.is_file():
            known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yml")))
            raise UserError(f"There is no recipe {path}. Known: {known}.")
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(name, recipe["run"]["params"], project, env)

    def changed(self, parameter: str, value: Any) -> "Experiment":
        """Make the same experiment with one parameter, such as ``stage_1.dim``, at a value."""
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
            str(self.project / "conf"),
            env=self.env,
            runtime_params=copy.deepcopy(dict(self.params)),
            **LOADER_ARGS,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters, chosen and checked; one that cannot work raises a ClickException."""
        return self.configuration["parameters"]

    @property
    def key(self) -> str:
        """Key of the run: equal for experiments that are the same whatever they are called."""
        name = "ood_run" if self.seeks_ood else "run"  # a mistake is told here
        return self.configuration.artifact_keys[name]

    @property
    def seeks_ood(self) -> bool:
        """Whether it scores ood by its model, instead of evaluating it."""
        return self.parameters["ood"] is not None

    @cached_property
    def catalog(self) -> DataCatalog:
        """The catalog of the run, built without the session that a run needs: there are many."""
        entries = {
            name: {**entry, "filepath": str(self.project / entry["filepath"])}
            for name, entry in self.configuration["catalog"].items()
            if "filepath" in entry
        }
        return DataCatalog.from_config(entries)

    def load(self, name: str) -> Any:
        """Load an artifact of the run; ``phase_<n>.<name>`` is that of the n-th phase."""
        phase, _, rest = name.partition(".")
        if phase.startswith("phase_"):
            phases = list(self.configuration.experiment.phases)
            name = f"{phases[int(phase.removeprefix('phase_')) - 1]}.{rest}"
        return self.catalog.load(name)

    @cached_property
    def groups(self) -> Groups:
        """The groups of its images; empty where these are independent of each other."""
        return self.load("groups") if self.catalog.exists("groups") else {}

    def histories(self) -> list[dict[str, Any]]:
        """Load the histories of its phases, in order."""
        return [self.load(name) for name in self.trainings]

    @property
    def trainings(self) -> dict[str, str]:
        """Names of its histories in the catalog, each with a key that equal trainings share."""
        keys = self.configuration.artifact_keys
        return {f"{name}.history": keys[name] for name in self.configuration.experiment.phases}

    @property
    def is_finished(self) -> bool:
        """Whether everything up to the report, or to the model, is there."""
        return all(self.catalog.exists(name) for name in self._last)

    @property
    def _last(self) -> tuple[str, ...]:
        if self.seeks_ood:
            return "ood_metrics", "ood_report"
        return ("metrics", "report") if self.evaluated else ("hierarchy",)

    def session(self) -> Any:
        """Make a session of Kedro's, as `kedro run` does; entering it gives what its types lack."""
        params = copy.deepcopy(dict(self.params))
        return KedroSession.create(self.project, env=self.env, runtime_params=params)

    def run(self, until: str | None = None) -> None:
        """Do what is missing of it, or up to an artifact, in a run of MLflow's as `kedro run`."""
        with self.session() as session:
            name = "ood" if self.seeks_ood else self.configuration.experiment.pipeline
            outputs = [until] if until else None if self.evaluated else list(self._last)
            session.run(pipeline_names=[name], to_outputs=outputs, only_missing_outputs=True)


def run_all(experiments: Collection[Experiment]) -> None:
    """Run those that are not finished, one after the other; called again it goes on.

    One that fails, such as a training that diverges, leaves the others to be run.

    Raises:
        ClickException: A mistake of the user's in any of them, before the first is run; or some
            have failed.
    """
    for experiment in experiments:
        experiment.parameters  # noqa: B018
    waiting = [each for each in experiments if not each.is_finished]
    failed = []
    for number, experiment in enumerate(waiting, start=1):
        log.info("Run %d of %d: %s", number, len(waiting), experiment.name)
        try:
            experiment.run()
        except ClickException as error:
            failed.append(f"{experiment.name}: {error.message}")
            log.error(failed[-1])
    if failed:
        count = f"{len(failed)} of {len(waiting)} runs failed"
        raise ClickException("\n".join([*failed, f"{count}. The others are finished."]))
