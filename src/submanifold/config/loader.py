"""Kedro's configuration of one experiment: its parameters, and cache keys in artifacts' paths."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from click import ClickException
from kedro.config import MissingConfigException, OmegaConfigLoader
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from submanifold.common.errors import UserError
from submanifold.common.imports import without_garbage_collection
from submanifold.config.project import PACKAGED_CONF
from submanifold.inference.records import RunRecord, choose_name

if TYPE_CHECKING:
    from submanifold.config.schema import Experiment

# at the start of this process: MLflow sets the variable later to what the project uses
TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI")

LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "catalog": "soft"},
    "config_patterns": {"mlflow": ["mlflow*"]},
}
"""Arguments of the loader in this project."""

current_experiment: ContextVar["Experiment | None"] = ContextVar("experiment", default=None)
"""The experiment for which Kedro loads the pipelines; None outside of a session."""


class ExperimentConfigLoader(OmegaConfigLoader):
    """Kedro's loader whose parameters are one experiment and whose paths contain its cache keys.

    - The parameters are the typed settings of the experiment that the tables and the user select
      (:func:`submanifold.config.resolve`): ``model``, ``data``, ``evaluation``, ``launch``, one
      group for each phase, and the single values.
    - ``${key:data}``, ``${key:model}`` and ``${key:run}`` are hashes of everything that an artifact
      depends on: a changed setting gives another path, and the earlier setting finds its artifacts
      again. ``${parameter:name}`` is a parameter's value.
    - ``${tracking_uri:default}`` is MLFLOW_TRACKING_URI or the default.
    - A catalog entry named ``{phase}.<name>`` stands for one entry of every phase: ``{phase}`` is
    its
      name, ``{key}`` its cache key, and ``{u}`` the key of its input. Entries with ``{u}`` are left
      out for phases that start at the data.
    """

    def __init__(self, conf_source: str, *args: Any, **options: Any) -> None:
        if Path(conf_source) == PACKAGED_CONF:  # may be a checkout, whose conf/local is its own
            options["default_run_env"] = options["base_env"]
        super().__init__(conf_source, *args, **options)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration."""
        if key in self or key == "globals":
            return super().__getitem__(key)
        try:
            if key == "parameters":
                from submanifold.config.cache_keys import comparison_key

                experiment = self.experiment
                settings = dict(experiment)
                names = ("input_noise", "data_name", "own_paths")
                derived = {name: getattr(experiment, name) for name in names}
                derived["comparison_key"] = comparison_key(experiment)
                derived["run_name"] = self.run_name
                return settings | settings.pop("phases") | derived
            keys = self.artifact_keys  # first: a resolver would wrap the user's mistake
            config = self._read(key)
            if key == "catalog":
                return expand(config, self.experiment.phases, keys, self._parameter)
            return config
        except UserError as error:
            raise ClickException(str(error)) from error

    @cached_property
    def experiment(self) -> "Experiment":
        """The experiment that the parameters select.

        Raises:
            UserError: A parameter is not allowed.
        """
        with without_garbage_collection():  # imports torch, which most commands do not need
            from submanifold.config.cache_keys import RAW_FOLDER
            from submanifold.config.resolve import resolve

        return resolve(self._read("parameters"), self.runtime_params, self.project / RAW_FOLDER)

    @property
    def tables(self) -> dict[str, Any]:
        """The parameters before they are resolved, such as the tables of datasets and methods."""
        return self._read("parameters")

    @property
    def uses_default_method(self) -> bool:
        """Whether the method is the dataset's default."""
        return self.tables.get("method") == "auto"

    @cached_property
    def artifact_keys(self) -> dict[str, str]:
        """Cache key of each artifact (:func:`submanifold.config.artifact_keys`)."""
        from submanifold.config.cache_keys import artifact_keys

        return artifact_keys(self.experiment, self.project)

    @cached_property
    def run_name(self) -> str:
        """Name of the run (:func:`submanifold.inference.records.choose_name`).

        Raises:
            UserError: A run with other settings has the name that the user chose.
        """
        experiment = self.experiment
        key = self.artifact_keys["model"]
        return choose_name(self.project, experiment.name, key, experiment.method)

    def record(self) -> RunRecord:
        """Describe the run of this configuration, which starts now."""
        experiment, catalog = self.experiment, self["catalog"]
        return RunRecord(
            name=self.run_name,
            key=self.artifact_keys["model"],
            dataset=experiment.data_name,
            method=experiment.method,
            started=datetime.now().isoformat(timespec="seconds"),
            model=catalog["hierarchy"]["filepath"],
            metrics=catalog["metrics"]["filepath"],
            report=catalog["report"]["filepath"],
            params=dict(self.runtime_params or {}),
        )

    @property
    def project(self) -> Path:
        """The folder of the artifacts: that of ``conf/``, or the current one (packaged conf)."""
        source = Path(self.conf_source)
        return Path.cwd() if source == PACKAGED_CONF else source.resolve().parent

    def _read(self, key: str) -> dict[str, Any]:
        """Read one kind of configuration.

        Raises:
            UserError: A file is not YAML or not a mapping, or there is no such environment.
        """
        unknown: Any = {}.__getitem__ if key == "parameters" else None  # keys depend on them
        try:
            with _resolving(unknown or self._key, unknown or self._parameter, str(self.project)):
                if key == "parameters":
                    return self._merged_parameters()
                return self._catalog_template() if key == "catalog" else super().__getitem__(key)
        except OmegaConfBaseException as error:
            reason = str(error.msg or error).splitlines()[0]
            raise UserError(
                f"{error.full_key or key}: expected ${{<parameter>}}, ${{globals:...}} or "
                f"${{runtime_params:...}}, got an interpolation that fails: {reason}. Change it in "
                "conf/."
            ) from error
        except MissingConfigException as error:
            if Path(self.conf_source, self.env or self.default_run_env).is_dir():
                raise  # Kedro does not need every kind
            known = [path.name for path in sorted(Path(self.conf_source).iterdir())
                     if path.is_dir() and path.name != "runs"]  # fmt: skip
            raise UserError(
                f"--env: expected one of {', '.join(known)} (the folders of {self.conf_source}), "
                f"got {self.env}. Change it with --env=<name>."
            ) from error
        except (ValueError, TypeError, AttributeError, YAMLError) as error:
            raise UserError(
                f"conf/: expected YAML files with names and values, got: {error}"
            ) from error

    def _merged_parameters(self) -> dict[str, Any]:
        """Read the parameters' files and merge the runtime parameters over them.

        Files without interpolations do not depend on the runtime parameters, so they are parsed
        once in a process: OmegaConf takes a tenth of a second.
        """
        given = self.runtime_params
        try:
            self.runtime_params = {}
            files = self._cached("parameters", "${", super().__getitem__)
        finally:
            self.runtime_params = given
        if files is None or "${" in str(given):
            return super().__getitem__("parameters")
        return self._soft_merge(files, given or {})

    def _catalog_template(self) -> dict[str, Any]:
        """Read the catalog with ``{key:data}`` in place of ``${key:data}``."""

        def read(key: str) -> dict[str, Any]:
            with _resolving("{{key:{}}}".format, "{{parameter:{}}}".format, str(self.project)):
                return super(ExperimentConfigLoader, self).__getitem__(key)

        found = self._cached("catalog", "${runtime_params", read)
        return read("catalog") if found is None else found

    def _cached(
        self, key: str, varying: str, read: Callable[[str], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Read unchanged files once; return None if one of them contains the text ``varying``."""
        folders = [Path(self.conf_source, environment) for environment in self._environments]
        paths = [path for folder in folders for path in sorted(folder.rglob(f"{key}*"))]
        files = [path for path in paths if path.is_file()]
        stamps = tuple((path, (at := path.stat()).st_mtime_ns, at.st_size) for path in files)
        place = key, tuple(folders)
        if self._files.get(place, (None, None))[0] != stamps:
            varies = any(varying in path.read_text(errors="replace") for path in files)
            self._files[place] = stamps, None if varies else read(key)
        return self._files[place][1]

    _files: ClassVar[dict[tuple[str, tuple[Path, ...]], tuple[Any, dict[str, Any] | None]]] = {}

    @staticmethod
    def _soft_merge(
        config: dict[str, Any], env_config: dict[str, Any], env_path: str | None = None
    ) -> dict[str, Any]:
        """Merge an environment into the base as Kedro does, but as plain values."""
        merged = dict(config)
        for name, value in env_config.items():
            before = merged.get(name)
            if isinstance(before, dict) and isinstance(value, dict):
                value = ExperimentConfigLoader._soft_merge(before, value)
            merged[name] = value
        return merged

    @property
    def _environments(self) -> list[str]:
        return list(dict.fromkeys((self.base_env, self.env or self.default_run_env)))

    def _key(self, name: str) -> str:
        return self.artifact_keys.get(name, "none")

    def _parameter(self, name: str) -> Any:
        return self.run_name if name == "run_name" else getattr(self.experiment, name)


def expand(
    catalog: Mapping[str, Any],
    phases: Mapping[str, Any],
    keys: Mapping[str, str],
    parameter: Callable[[str], Any] = str,
) -> dict[str, Any]:
    """Fill in keys and parameters, and write out the entries ``{phase}.<name>`` for every phase.

    Args:
        catalog: Entries with ``{key:<name>}`` for a key and ``{parameter:<name>}`` for a value.
        phases: The phases by name.
        keys: Key of each artifact; ``none`` for others.
        parameter: Returns the value of a parameter.
    """
    values = {"key": lambda name: keys.get(name, "none"), "parameter": parameter}

    def filled(text: str) -> Any:
        return json.loads(_FIELD.sub(lambda m: json.dumps(str(values[m[1]](m[2])))[1:-1], text))

    written: dict[str, Any] = {}
    for name, entry in catalog.items():
        text = json.dumps(entry)
        if "{phase}" not in name:
            written[name] = filled(text)
            continue
        for phase in phases:
            own = text.replace("{phase}", phase).replace("{key}", keys[phase])
            own = own.replace("{u}", keys.get(f"{phase}.u", "{u}"))
            if "{u}" not in own:
                written[name.replace("{phase}", phase)] = filled(own)
    return written


_FIELD = re.compile(r"\{(key|parameter):(\w+)\}")
_resolvers: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("resolvers")


@contextmanager
def _resolving(
    key: Callable[[str], str], parameter: Callable[[str], Any], project: str
) -> Iterator[None]:
    """Let ``${key:...}`` and the others use one loader; OmegaConf's resolvers are process-wide."""
    before = _resolvers.set({"key": key, "parameter": parameter, "project_path": lambda: project})
    try:
        yield
    finally:
        _resolvers.reset(before)


def _register(name: str, resolver: Callable[..., Any]) -> None:
    OmegaConf.register_new_resolver(name, resolver, replace=True)


_register("key", lambda name: _resolvers.get()["key"](name))
_register("parameter", lambda name: _resolvers.get()["parameter"](name))
_register("project_path", lambda: _resolvers.get()["project_path"]())
_register("tracking_uri", lambda default: TRACKING_URI or default)
