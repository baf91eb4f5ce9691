"""One experiment: data, a model, and the phases that train it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from submanifold.common.settings import Name, Settings
from submanifold.data.settings import DataSettings, ImageSettings, SyntheticSettings
from submanifold.models import ModelSettings
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings


class EvaluationSettings(Settings):
    """What is measured on the test data; of points with a known density, ``samples`` alone.

    Attributes:
        samples: Samples for the distances between distributions.
        dequantizations: Noise draws for the importance bound on an image's bits.
        inception_weights: FID: ``auto`` (measured on a GPU), ``download``, or a path.
    """

    samples: int = Field(gt=1)
    dequantizations: int | None = Field(default=None, gt=0)
    inception_weights: str | None = None


class Source(NamedTuple):
    """What a phase is trained on: the coordinates that stages of an earlier phase make of data.

    Attributes:
        phase: Number of the phase that last changed those stages.
        through: How many stages there are before the phase's first.
    """

    phase: int
    through: int


class LaunchSettings(Settings):
    """Who computes what: the results are the same within rounding.

    Attributes:
        processes: Of each machine; each has its share of every batch, and of GPUs its own.
        machines: That have so many processes each, this one among them.
        address: ``<host>:<port>`` of this machine, at which the others join it.
        grad_accumulation_steps: Parts of a process's share of a training batch that are computed
            one after the other, to save memory.
    """

    processes: int = Field(default=1, gt=0)
    machines: int = Field(default=1, gt=0)
    address: str | None = Field(default=None, pattern=r"^[^:\s]+:[0-9]+$")
    grad_accumulation_steps: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _address_of_several(self) -> "LaunchSettings":
        if self.machines > 1 and self.address is None:
            raise ValueError(
                f"machines={self.machines} cannot be used without launch.address, where the others "
                "join this one: <host>:<port>"
            )
        if self.machines == 1 and self.address is not None:
            raise ValueError("address would have no effect: launch.machines is 1")
        return self

    @property
    def shares(self) -> int:
        """Into how many a training batch is divided."""
        return self.processes * self.machines * self.grad_accumulation_steps


class Choices(Settings):
    """The parameters that are single values, and how phases are launched.

    Attributes:
        dataset: Name of the dataset's row.
        method: Name of the method's row.
        seed: Of everything but the data.
        device: Where it computes.
        launch: By how many processes it is computed.
        charts: How many charts the manifold has; None is the method's own count, or 1.
        sweep: The parameter whose sweep is drawn.
        study: Name of the study that is drawn.
        register_as: The name under which MLflow's registry gets the model; None is not at all.
        ood: Name of the dataset's row, or the place, of images that are held to be others.
    """

    dataset: Name
    method: Name
    seed: int = Field(ge=0, lt=2**32)
    device: str
    launch: LaunchSettings = Field(default_factory=LaunchSettings)
    charts: int | None = Field(None, ge=1)
    sweep: Name | None = None
    study: Name | None = None
    register_as: Name | None = None
    ood: str | None = Field(None, min_length=1)


class Experiment(Choices):
    """A dataset, a model, and the phases that train it, all checked.

    Attributes:
        data: Where the data come from.
        model: What the stages are.
        phases: What is trained, in order.
        evaluation: What is measured.
        ood_data: Where the out-of-distribution images come from.
    """

    data: DataSettings
    model: ModelSettings
    phases: tuple[PhaseSettings | RotationSettings, ...] = Field(min_length=1)
    evaluation: EvaluationSettings
    ood_data: ImageSettings | None = None

    @property
    def synthetic(self) -> bool:
        """Whether the data have a known density."""
        return isinstance(self.data, SyntheticSettings)

    @property
    def pipeline(self) -> str:
        """Name of its pipeline: ``joint`` if there is one training, else ``hierarchical``."""
        return "joint" if len(self.phases) - len(self.rotations) == 1 else "hierarchical"

    @property
    def trained(self) -> list[tuple[int, ...]]:
        """The stages that each phase changes."""
        return [phase.stages for phase in self.phases]

    @property
    def rotations(self) -> list[int]:
        """Numbers of the phases that train nothing, but rotate."""
        numbered = enumerate(self.phases, start=1)
        return [n for n, phase in numbered if isinstance(phase, RotationSettings)]

    @property
    def sources(self) -> list[Source | None]:
        """What each phase is trained on; None is the data themselves."""
        return sources(self.trained)

    def parameters(self) -> dict[str, Any]:
        """The experiment as nested parameters, named as a user sets them, JSON-able."""
        plain = self.model_dump(mode="json", exclude={"data", "model", "phases", "evaluation",
                                                        "ood_data"})  # fmt: skip
        stages = {f"stage_{n}": s.model_dump(mode="json", exclude=None if s.noise else {"noise"})
                  for n, s in enumerate(self.model.stages, start=1)}  # fmt: skip
        phases = {f"phase_{n}": effective(p) for n, p in enumerate(self.phases, start=1)}
        others = self.ood_data
        ood = {} if others is None else {"ood_data": others.model_dump(mode="json")}
        return {
            **plain,
            "charts": self.model.charts,
            **ood,
            "data": self.data.model_dump(mode="json"),
            **stages,
            **phases,
            "evaluation": self.evaluation.model_dump(mode="json", exclude_none=True),
        }


def effective(phase: Any) -> dict[str, Any]:
    """A phase's settings, JSON-able, without those that do nothing in it."""
    if isinstance(phase, RotationSettings):
        return phase.model_dump(mode="json")
    idle: dict[str, Any] = {name: True for name, term in phase.terms.items() if not term.weight > 0}
    if "likelihood" in idle:
        idle["likelihood"] = {"unit": True}  # which is there unless it is said to weigh nothing
    if phase.stages[0] == 1:
        idle.setdefault("reconstruction", {"space": True})
    return phase.model_dump(mode="json", exclude=idle)


def sources(trained: list[tuple[int, ...]]) -> list[Source | None]:
    """See :attr:`Experiment.sources`."""
    found: list[Source | None] = []
    for number, stages in enumerate(trained, start=1):
        before = [n for n in range(1, number) if trained[n - 1][0] < stages[0]]
        found.append(Source(before[-1], stages[0] - 1) if before else None)
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested parameters with dots: ``{"stage_1": {"dim": 5}}`` as ``{"stage_1.dim": 5}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat
