"""The typed settings of one experiment: data, model, phases and evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from submanifold.common.errors import printable
from submanifold.common.files import expand_user
from submanifold.common.settings import Name, Settings
from submanifold.data.settings import DataSettings, ImageSettings, TableSettings
from submanifold.losses import Loss
from submanifold.models import ModelSettings
from submanifold.training.phases import AnyPhaseSettings, PhaseSettings
from submanifold.training.rotation import RotationSettings

OWN_FILES = ("folder", "table")  #: Datasets that are the user's files.


class EvaluationSettings(Settings):
    """What is measured on the test data; for points with a known density only ``samples``.

    Attributes:
        samples: Number of samples for the distances between distributions.
        dequantizations: Noise draws of the importance-weighted bound on an image's bits.
        volumes: Images whose volume is measured, for the density on the manifold.
        inception_weights: For FID: ``download`` or a path; None uses EfficientNet.
        brief: Whether fewer test events are measured; by default with less than 10 minutes.
    """

    samples: int = Field(gt=1, le=1_000_000)
    dequantizations: int | None = Field(default=None, gt=0)
    volumes: int = Field(default=0, ge=0)
    inception_weights: str | None = None
    brief: bool = False


class TimeBudget(Settings):
    """The part of ``training`` that concerns all phases together.

    Attributes:
        minutes: Time of start, data and all phases; the evaluation may take a quarter more.
    """

    minutes: float = Field(gt=0)


class Choices(Settings):
    """The parameters that are single values.

    Attributes:
        dataset: The data, by a name in the table ``datasets``.
        method: Stages and phases, by a name in the table ``methods``; ``auto`` is the dataset's.
        seed: Seed of everything except the data.
        name: Name of the run; None is that of an equal run, or date and method.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        threads: Number of threads of torch; ``auto`` chooses it by measurement, and results differ
            by rounding.
        calibration: What calibrates the p-values: validation data (``split``), or all rows of a
            table but those of the test, by models of folds (``cross``).
        charts: Number of charts; None is the method's number, or 1.
        register_as: Name of the model in MLflow's registry; None does not register it.
        ood: Dataset, folder or zip with out-of-distribution images, or a table of such rows.
    """

    dataset: Name
    method: Name
    seed: int = Field(ge=0, lt=2**32)
    name: Name | None = None
    device: str
    threads: Literal["auto"] | Annotated[int, Field(gt=0, le=1024)] = "auto"
    calibration: Literal["split", "cross"] = "split"
    charts: int | None = Field(None, ge=1)
    register_as: Name | None = None
    ood: str | None = Field(None, min_length=1)


class Source(NamedTuple):
    """The input of a phase that does not start at the data: coordinates of an earlier model."""

    phase: str  # the last one before that changed the stages that encode the data
    through: int  # number of stages that encode the data


class Experiment(Choices):
    """A dataset, a model, and the phases that train it."""

    data: DataSettings
    model: ModelSettings
    phases: dict[str, AnyPhaseSettings] = Field(min_length=1)  # in the order of training
    evaluation: EvaluationSettings
    ood_data: ImageSettings | TableSettings | None = None
    minutes: float | None = None  # of training, to which the steps of all phases are scaled

    @property
    def data_name(self) -> str:
        """Name of the data on pages: that of the user's files, or the dataset."""
        path = getattr(self.data, "path", None)
        if self.dataset not in OWN_FILES or not path:
            return self.dataset
        paths = [path] if isinstance(path, str) else path
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return printable(expand_user(paths[0]).absolute().name) + more

    @property
    def is_conditional(self) -> bool:
        """Whether the density is conditional on a label or on columns."""
        return getattr(self.data, "condition", None) is not None

    @property
    def trainings(self) -> dict[str, PhaseSettings]:
        """The phases that minimize a loss, by name."""
        return {
            name: phase for name, phase in self.phases.items() if isinstance(phase, PhaseSettings)
        }

    @property
    def sources(self) -> dict[str, Source | None]:
        """The input of each phase by name; None for the data themselves."""
        sources: dict[str, Source | None] = {}
        first = {name: phase.stages[0] for name, phase in self.phases.items()}
        for name in first:
            before = [earlier for earlier in sources if first[earlier] < first[name]]
            sources[name] = Source(before[-1], first[name] - 1) if before else None
        return sources

    @property
    def input_noise(self) -> float:
        """Input noise of the density: that of the last training that starts at the data."""
        return [phase.input_noise for phase in self.trainings.values() if phase.stages[0] == 1][-1]

    def parameters(self) -> dict[str, Any]:
        """Nested JSON-able parameters, under the names by which a user sets them."""
        single = self.model_dump(mode="json", include=set(Choices.model_fields))
        groups = {"data": self.data.model_dump(mode="json")}
        groups["evaluation"] = self.evaluation.model_dump(mode="json", exclude_none=True)
        if self.ood_data is not None:
            groups["ood_data"] = self.ood_data.model_dump(mode="json")
        for number, stage in enumerate(self.model.stages, start=1):
            unset = None if stage.noise else {"noise"}
            group = groups[f"stage_{number}"] = stage.model_dump(mode="json", exclude=unset)
            if len(group["flow"]) == 1:
                (group["flow"],) = group["flow"]
        for name, phase in self.phases.items():
            groups[name] = groups.get(name, {}) | effective(phase)
        if self.minutes is not None:
            groups["training"] = {"minutes": self.minutes}
            for name in self.trainings:
                del groups[name]["training"]["steps"]
        return {**single, "charts": self.model.charts, **groups}


def effective(phase: AnyPhaseSettings) -> dict[str, Any]:
    """Return a phase's settings, JSON-able, without those that have no effect."""
    if isinstance(phase, RotationSettings):
        return phase.model_dump(mode="json")
    idle: dict[str, Any] = {name: True for name in Loss.model_fields if name not in phase.terms}
    if "likelihood" in idle:
        idle["likelihood"] = {"unit": True, "trim": True}  # its weight is shown: by default it is 1
    if phase.reconstruction.penalty == "mse":
        idle.setdefault("reconstruction", {"delta": True})
    idle["training"] = {"grad_accumulation_steps": True}  # changes the results by rounding only
    return phase.model_dump(mode="json", exclude=idle)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Write parameters with dots as nested ones: the inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = value
    return nested
