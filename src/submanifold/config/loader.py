"""Kedro's configuration of one experiment: its parameters, and cache keys in artifacts' paths."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kedro.config import MissingConfigException, OmegaConfigLoader
from omegaconf import OmegaConf

from submanifold.common.errors import error_prefix, unexpected
from submanifold.config.project import (
    PACKAGED_CONF,
    RAW_FOLDER,
    conf_source,
    find_checkout,
    project_folder,
)
from submanifold.inference.records import RunRecord, choose_name

if TYPE_CHECKING:  # imports torch, which most commands do not need
    from submanifold.config.schema import Experiment

# at the start of this process: MLflow sets the variable later to what the project uses
TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI")

WITHOUT_OOD = {
    "ood_data": "none",
    "ood_run": "none",
    "ood_report": "none",
}  # cache keys of runs without such data

LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "catalog": "soft"},
    "config_patterns": {"mlflow": ["mlflow*"]},
}


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hide the warnings of omegaconf 2.4 about a function that Kedro calls."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "register_new_resolver", UserWarning)
        yield


class ExperimentConfigLoader(OmegaConfigLoader):
    """Kedro's loader whose parameters are one experiment and whose paths contain its cache keys.

    - The parameters are the typed settings of the experiment that the tables and the user select
      (:func:`.resolve`): ``model``, ``data``, ``evaluation``, one group for each phase, and the
      single values.
    - ``${key:data}``, ``${key:model}``, ``${key:run}``, ``${key:report}`` and others are hashes of
      everything that an artifact depends on: a changed setting gives another path, and the earlier
      setting finds its artifacts again.
    - ``${tracking_uri:default}`` is MLFLOW_TRACKING_URI or the default.
    - A catalog entry named ``{phase}.<name>`` stands for one entry of every phase: ``{phase}`` is
      its name, ``{key}`` its cache key, and ``{u}`` the key of its input. Entries with ``{u}`` are
      left out for phases that start at the data.
    """

    latest: ClassVar["ExperimentConfigLoader | None"] = None

    def __init__(self, conf_source: str, *args: Any, **options: Any) -> None:
        if Path(conf_source) == PACKAGED_CONF:  # may be a checkout, whose conf/local is its own
            options["default_run_env"] = options["base_env"]
        with _without_deprecations():
            super().__init__(conf_source, *args, **options)
        ExperimentConfigLoader.latest = self

    def __getitem__(self, key: str) -> dict[str, Any]:
        if key in self or key == "globals":
            return super().__getitem__(key)
        if key == "parameters":
            experiment = self.experiment
            settings = dict(experiment) | {"untrained": None}  # before the first phase
            settings |= {name: getattr(experiment, name) for name in ("input_noise", "data_name")}
            settings["model_file"] = str(self.path("hierarchy"))
            for name, source in experiment.sources.items():
                folder, stages = str(self.path(f"{name}.model").parent), source and source.through
                settings[name] = {
                    "name": name,
                    "settings": experiment.phases[name],
                    "folder": folder,
                    "encoding_stages": stages,
                }
            return settings
        if key == "catalog":
            return copy.deepcopy(self._catalog)  # Kedro changes its paths
        return self._read(key)  # without the experiment, which imports torch

    @cached_property
    def _catalog(self) -> dict[str, Any]:
        """The catalog of all phases, which takes a tenth of a second to read."""
        return expand(self._read("catalog"), self.experiment.phases, self.artifact_keys)

    @cached_property
    def experiment(self) -> "Experiment":
        """The experiment that the parameters select; a UserError if one is not allowed."""
        from submanifold.config.resolve import resolve

        return resolve(self.tables)

    def validate(self) -> None:
        """Read what the model depends on; a UserError if settings do not fit together."""
        from submanifold.config.validate import validate

        record = None
        if self.experiment.data.kind == "table":
            from submanifold.data.tables.schema import record_path  # imports pandas

            record = record_path(self.project / RAW_FOLDER, self.artifact_keys["data"])
        validate(self.experiment, record)

    @property
    def tables(self) -> dict[str, Any]:
        """The parameters before they are resolved, such as the tables of datasets and methods."""
        return self._read("parameters")

    @cached_property
    def artifact_keys(self) -> dict[str, str]:
        """Cache key of each artifact."""
        from submanifold.config.keys import artifact_keys

        return artifact_keys(self.experiment, self.project)

    @property
    def run_name(self) -> str:
        """Name of the run: that of its record if it has one; a UserError if another run has it."""
        chosen, method = self.experiment.name, self.experiment.method
        return choose_name(self.project, chosen, self.artifact_keys["model"], method)

    def check_images(self, part: str = "data") -> None:
        """Check the images of ``data`` or ``ood``, unless they must be downloaded first."""
        from submanifold.data.prepare import check
        from submanifold.data.settings import ImageSettings

        settings = self.experiment.data if part == "data" else self.experiment.ood_data
        if isinstance(settings, ImageSettings):
            with error_prefix(part):
                check(settings, self.path(f"{part}_folder"), self.project / RAW_FOLDER)

    def path(self, name: str) -> Path:
        """Return the path of a catalog entry's file or folder."""
        return self.project / file_entry(self["catalog"][name])["filepath"]

    def record(self) -> RunRecord:
        """Describe the run of this configuration, which starts now."""
        experiment, catalog = self.experiment, self["catalog"]
        entries = {"model": "hierarchy", "metrics": "metrics", "report": "report"}
        return RunRecord(
            name=self.run_name,
            key=self.artifact_keys["model"],
            dataset=experiment.data_name,
            method=experiment.method,
            started=datetime.now().isoformat(timespec="seconds"),
            params=dict(self.runtime_params or {}),
            **{kind: file_entry(catalog[name])["filepath"] for kind, name in entries.items()},
        )

    @property
    def project(self) -> Path:
        """The folder of artifacts: the checkout of ``conf/``, or that of the current folder."""
        source = Path(self.conf_source)
        folder = source.resolve().parent
        is_own = source != PACKAGED_CONF and find_checkout(folder) == folder
        return folder if is_own else project_folder()

    def _read(self, key: str) -> dict[str, Any]:
        keys = WITHOUT_OOD | self.artifact_keys if key == "catalog" else {}
        on_server = (TRACKING_URI or "").startswith("http")
        resolvers: dict[str, Callable[..., Any]] = {
            "key": lambda name: keys[name],
            "project_path": lambda: str(self.project),
            "tracking_uri": lambda default: TRACKING_URI or default,
            "artifact_location": lambda path: None if on_server else path,
        }
        try:
            with _without_deprecations():
                for name, resolver in resolvers.items():  # OmegaConf's are those of a process
                    OmegaConf.register_new_resolver(name, resolver, replace=True)
                return super().__getitem__(key)
        except MissingConfigException as error:
            conf = Path(self.conf_source)  # a folder, or an archive of `kedro package`
            env = self.env or self.default_run_env
            if not conf.is_dir() or (conf / env).is_dir():
                raise  # Kedro does not need every kind
            expected = f"the name of a folder of {self.conf_source}"
            raise unexpected("--env", expected, env, "Change it with --env=<name>") from error
        except Exception as error:  # parsers of YAML raise many kinds of errors
            name = getattr(error, "full_key", None) or key
            reason = " ".join(str(getattr(error, "msg", None) or error).split())
            expected = "YAML files with names, values and interpolations that Kedro knows"
            fix = f"Change it in {self.conf_source}"
            raise unexpected(name, expected, reason, fix) from error


def file_entry(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the catalog entry of a file, without kedro-mlflow's wrapper that logs it."""
    inner = entry.get("dataset")
    return inner if isinstance(inner, Mapping) and "filepath" not in entry else entry


def load_configuration(
    conf: Path | str, params: Mapping[str, Any] | None = None, env: str | None = None
) -> ExperimentConfigLoader:
    """Return the configuration in a folder, with runtime parameters.

    As in Kedro's sessions, the environment is that of KEDRO_ENV by default.
    """
    env = env or os.environ.get("KEDRO_ENV")
    params = copy.deepcopy(dict(params or {}))
    return ExperimentConfigLoader(str(conf), env=env, runtime_params=params, **LOADER_ARGS)


def session_experiment() -> "Experiment":
    """Return the experiment of the session whose pipelines Kedro loads, or that of ``conf/``.

    Kedro passes nothing to ``register_pipelines``; a session creates its loader just before.
    """
    loader = ExperimentConfigLoader.latest
    if loader is None:
        loader = load_configuration(conf_source(project_folder()))
    return loader.experiment


def expand(
    catalog: Mapping[str, Any], phases: Mapping[str, Any], keys: Mapping[str, str]
) -> dict[str, Any]:
    """Write out the entries ``{phase}.<name>`` for every phase; see the class."""
    written = {name: entry for name, entry in catalog.items() if "{phase}" not in name}
    for name in [name for name in catalog if name not in written]:
        for phase in phases:
            texts = {"{phase}": phase, "{key}": keys[phase], "{u}": keys.get(f"{phase}.u", "{u}")}
            entry = _fill(catalog[name], texts)
            if "{u}" not in str(entry):
                written[_fill(name, texts)] = entry
    return written


def _fill(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _fill(entry, texts) for name, entry in value.items()}
    for placeholder, text in texts.items() if isinstance(value, str) else ():
        value = value.replace(placeholder, text)
    return value
