"""Kedro's configuration of one experiment: its parameters, and keys in the paths of artifacts."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from click import ClickException
from kedro.config import MissingConfigException, OmegaConfigLoader
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from submanifold.common.errors import UserError

if TYPE_CHECKING:
    from submanifold.config import Experiment

# of this process as it was started: MLflow sets the variable to what a project uses
TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI")


class ExperimentConfigLoader(OmegaConfigLoader):
    """Kedro's loader, whose parameters are one experiment and whose paths carry its keys.

    - The tables of rows and defaults are replaced by the experiment that they and the user choose
      (:func:`submanifold.config.resolve`). The stages stand under ``model`` too, as nodes take
      them.
    - ``${key:data}``, ``${key:model}`` and ``${key:run}`` are hashes of all that an artifact
      depends on, so that a changed setting means another path, and a setting changed back finds
      its artifacts again; ``${parameter:name}`` is a parameter's value.
    - ``${tracking_uri:default}`` is the MLflow that MLFLOW_TRACKING_URI names, and
      ``${artifact_location:uri,folder}`` the place of artifacts: a server's own, or the folder.
    - A catalog entry named ``phase_{n}.<name>`` stands for one entry of every phase, ``{n}`` for
      its number, ``{key}`` for its key, and ``{u}`` for the key of what it is trained on, where
      that is not the data; entries with it are left out where it is.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration."""
        if key in self or key == "globals":
            return super().__getitem__(key)
        try:
            if key == "parameters":
                model = self.experiment.model.model_dump(mode="json")
                return {**self.experiment.parameters(), "model": model}
            keys = self.keys_of  # first, since a resolver would wrap the user's mistake
            config = self._read(key)
            return expand(config, keys, self._parameter) if key == "catalog" else config
        except UserError as error:
            raise ClickException(str(error)) from error

    @cached_property
    def experiment(self) -> "Experiment":
        """What the parameters choose.

        Raises:
            UserError: One of them cannot work.
        """
        from submanifold.config import resolve  # torch, which most commands do without

        return resolve(self._read("parameters"), self.runtime_params)

    @cached_property
    def keys_of(self) -> dict[str, str]:
        """Key of each artifact: ``data``, ``phase_<n>``, ``phase_<n>.u``, ``model`` and ``run``."""
        from submanifold.config import artifact_keys

        return artifact_keys(self.experiment, Path(self._project))

    def _read(self, key: str) -> dict[str, Any]:
        """Read one kind of configuration, and say of what cannot be read where it is.

        Raises:
            UserError: A file is no YAML, or no mapping, or there is no such environment.
        """
        try:
            with _resolving(self._key, self._parameter, self._project):
                if key == "parameters":
                    return self._merged_parameters()
                return self._catalog_template() if key == "catalog" else super().__getitem__(key)
        except OmegaConfBaseException as error:
            what = str(error.msg or error).splitlines()[0]
            raise UserError(
                f"{error.full_key or key} cannot be worked out: {what}. Allowed in ${{...}}: names "
                "of other parameters, globals:, runtime_params:. Change it in conf/."
            ) from error
        except MissingConfigException as error:
            if Path(self.conf_source, self.env or self.default_run_env).is_dir():
                raise  # Kedro does without some kinds
            there = [path.name for path in sorted(Path(self.conf_source).iterdir())
                     if path.is_dir() and path.name != "runs"]  # fmt: skip
            raise UserError(
                f"env={self.env} is not known: {self.conf_source} has no such folder. Known: "
                f"{', '.join(there)}. Change it with --env=<name>."
            ) from error
        except (ValueError, TypeError, AttributeError, YAMLError) as error:
            raise UserError(self._broken_file() or f"conf/ cannot be read: {error}") from error

    def _merged_parameters(self) -> dict[str, Any]:
        """Read the parameters' files and put the runtime parameters over them.

        Without interpolations the files mean the same for all runtime parameters, so that they are
        parsed once for all experiments of a process: OmegaConf takes a tenth of a second.
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
        """Read the catalog, in which ``{key:data}`` stands for ``${key:data}``."""

        def read(key: str) -> dict[str, Any]:
            with _resolving("{{key:{}}}".format, "{{parameter:{}}}".format, self._project):
                return super(ExperimentConfigLoader, self).__getitem__(key)

        found = self._cached("catalog", "${runtime_params", read)
        return read("catalog") if found is None else found

    def _cached(
        self, key: str, varying: str, read: Callable[[str], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Read files that have not changed once; None if the text ``varying`` is in one of them."""
        environments = dict.fromkeys((self.base_env, self.env or self.default_run_env))
        folders = [Path(self.conf_source, environment) for environment in environments]
        paths = [path for folder in folders for path in sorted(folder.rglob(f"{key}*"))]
        files = [path for path in paths if path.is_file()]
        stamps = tuple((path, (at := path.stat()).st_mtime_ns, at.st_size) for path in files)
        state = key, tuple(folders), stamps
        if self._files.get(key, (None,))[0] != state:
            varies = any(varying in path.read_text(errors="replace") for path in files)
            self._files[key] = state, None if varies else read(key)
        return self._files[key][1]

    _files: ClassVar[dict[str, tuple[Any, dict[str, Any] | None]]] = {}

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

    def _broken_file(self) -> str | None:
        """What is wrong with the first of the files that cannot be read as a mapping."""
        folders = [Path(self.conf_source, env)
                   for env in (self.base_env, self.env or self.default_run_env)]  # fmt: skip
        for path in (path for folder in folders for path in sorted(folder.rglob("*.yml"))):
            try:
                found = OmegaConf.load(path)
            except (YAMLError, ValueError, OSError) as error:
                where = getattr(error, "problem_mark", None)
                line = f", line {where.line + 1}" if where else ""
                what = getattr(error, "problem", None) or str(error).splitlines()[0]
                return f"{path}{line} is not YAML: {what}. Mend it there."
            if not isinstance(found, DictConfig):
                return f"{path} holds a list, but should be names and their values. Mend it there."
        return None

    @property
    def _project(self) -> str:
        return str(Path(self.conf_source).resolve().parent)

    def _key(self, name: str) -> str:
        return self.keys_of.get(name, "none")

    def _parameter(self, name: str) -> Any:
        return getattr(self.experiment, name)


def expand(
    catalog: Mapping[str, Any], keys: Mapping[str, str], parameter: Callable[[str], Any] = str
) -> dict[str, Any]:
    """Write out the entries named ``phase_{n}.<name>`` for every phase there is a key for.

    Args:
        catalog: Entries, in which ``{key:<name>}`` stands for a key and ``{parameter:<name>}`` for
            a parameter's value.
        keys: Key of each artifact; ``none`` stands where there is none.
        parameter: Gives the value of a parameter by name.
    """
    values = {"key": lambda name: keys.get(name, "none"), "parameter": parameter}

    def filled(text: str) -> Any:
        return json.loads(_FIELD.sub(lambda m: json.dumps(str(values[m[1]](m[2])))[1:-1], text))

    written: dict[str, Any] = {}
    numbers = range(1, 1 + sum(key.startswith("phase_") and "." not in key for key in keys))
    for name, entry in catalog.items():
        text = json.dumps(entry)
        if "{n}" not in name:
            written[name] = filled(text)
            continue
        for n in numbers:
            own = text.replace("{n}", str(n)).replace("{key}", keys[f"phase_{n}"])
            own = own.replace("{u}", keys.get(f"phase_{n}.u", "{u}"))
            if "{u}" not in own:
                written[name.replace("{n}", str(n))] = filled(own)
    return written


_FIELD = re.compile(r"\{(key|parameter):(\w+)\}")
_resolvers: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("resolvers")


@contextmanager
def _resolving(
    key: Callable[[str], str], parameter: Callable[[str], Any], project: str
) -> Iterator[None]:
    """Let ``${key:...}`` and the others mean those of one loader: OmegaConf's are the process's."""
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
_register("artifact_location", lambda uri, folder: None if uri.startswith("http") else folder)
