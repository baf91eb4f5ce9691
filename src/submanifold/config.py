"""Kedro's configuration of one experiment: its parameters, and keys in the paths of artifacts."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import ClickException
from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf

from submanifold.errors import UserError

if TYPE_CHECKING:
    from submanifold.experiment import Experiment


class ExperimentConfigLoader(OmegaConfigLoader):
    """Kedro's loader, whose parameters are one experiment and whose paths carry its keys.

    - The tables of rows and defaults are replaced by the experiment that they and the user choose
      (:func:`submanifold.experiment.choose`). The stages stand under ``model`` too, as nodes take
      them.
    - ``${key:data}``, ``${key:model}`` and ``${key:run}`` are hashes of all that an artifact
      depends on, so that a changed setting means another path, and a setting changed back finds
      its artifacts again; ``${parameter:name}`` is a parameter's value.
    - A catalog entry named ``phase_{n}.<name>`` stands for one entry of every phase, ``{n}`` for
      its number, ``{key}`` for its key, and ``{u}`` for the key of what it is trained on, where
      that is not the data; entries with it are left out where it is.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration."""
        if key in self or key == "globals":
            return super().__getitem__(key)
        OmegaConf.register_new_resolver(
            "key", lambda name: self.keys_of.get(name, "none"), replace=True
        )
        OmegaConf.register_new_resolver("parameter", self._parameter, replace=True)
        OmegaConf.register_new_resolver("project_path", lambda: self._project, replace=True)
        try:
            if key == "parameters":
                model = self.experiment.model.model_dump(mode="json")
                return {**self.experiment.parameters(), "model": model}
            keys = self.keys_of  # first, since a resolver would wrap the user's mistake
            config = super().__getitem__(key)
            return expand(config, keys) if key == "catalog" else config
        except UserError as error:
            raise ClickException(str(error)) from error

    @cached_property
    def experiment(self) -> "Experiment":
        """What the parameters choose.

        Raises:
            UserError: One of them cannot work.
        """
        from submanifold.experiment import choose  # torch, which most commands do without

        return choose(super().__getitem__("parameters"))

    @cached_property
    def keys_of(self) -> dict[str, str]:
        """Key of each artifact: ``data``, ``phase_<n>``, ``phase_<n>.u``, ``model`` and ``run``."""
        from submanifold.experiment import artifact_keys

        return artifact_keys(self.experiment, Path(self._project))

    @property
    def _project(self) -> str:
        return str(Path(self.conf_source).resolve().parent)

    def _parameter(self, name: str) -> Any:
        return getattr(self.experiment, name)


def expand(catalog: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Write out the entries named ``phase_{n}.<name>`` for every phase there is a key for."""
    written: dict[str, Any] = {}
    numbers = range(1, 1 + sum(key.startswith("phase_") and "." not in key for key in keys))
    for name, entry in catalog.items():
        if "{n}" not in name:
            written[name] = entry
            continue
        for n in numbers:
            text = json.dumps(entry).replace("{n}", str(n)).replace("{key}", keys[f"phase_{n}"])
            text = text.replace("{u}", keys.get(f"phase_{n}.u", "{u}"))
            if "{u}" not in text:
                written[name.replace("{n}", str(n))] = json.loads(text)
    return written
