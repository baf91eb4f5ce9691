"""What types alone cannot say of an experiment: what fits together, and what would do nothing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from submanifold.common.errors import UserError
from submanifold.common.processes import check_memory, free_memory
from submanifold.config.experiment import Experiment, flatten
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.flows import is_noise_conditional
from submanifold.models import ModelSettings, Stage
from submanifold.training.rotation import RotationSettings

NUMBER = 4
"""Bytes of a float32."""
LAYERS, MOST_LAYERS, LARGEST_NUMBER = ("couplings", "steps", "layers", "blocks"), 1000, 2**24
"""Settings of flows that are built in a loop, their bound, and that of all others."""
ABOUT_VOLUME = ("manifold_likelihood", "non_orthogonality", "off_diagonal")

Tree = dict[str, Any]


def validate(experiment: Experiment, method: Tree, groups: Tree) -> None:
    """Build everything on no device, and refuse what was given to no effect.

    Args:
        experiment: What was chosen.
        method: The method's row.
        groups: What the user gave, by group.

    Raises:
        UserError: Naming the parameter.
    """
    _check_arrays(experiment)
    _check_numbers(experiment)
    with _with_advice():
        stages = _built(experiment.model.model_dump_json(), experiment.data.event_shape)
    _check_weights(experiment, stages)
    for number, stage in enumerate(stages, start=1):
        if stage.dim == stage.latent_dim:
            why = {"off_manifold_scale": "nothing is off a manifold of all dimensions"}
            refuse(groups.get(f"stage_{number}", {}), f"stage_{number}", why)
    _check_charts(experiment)
    if experiment.model.stages[0].noise:
        raise UserError(
            f"stage_1.noise={experiment.model.stages[0].noise:g} cannot be used: it is on what "
            "stages before leave. Set that of a later stage, or the phase's input_noise."
        )
    ready, rotated = 0, set()
    for number, phase in enumerate(experiment.phases, start=1):
        name, first, last = f"phase_{number}", phase.stages[0], phase.stages[-1]
        if isinstance(phase, RotationSettings):
            _check_rotation(name, phase, ready)
            rotated.add(phase.rotate)
            continue
        if phase.training.batch_size % experiment.launch.shares:
            raise UserError(
                f"{name}.training.batch_size={phase.training.batch_size} cannot be shared by "
                f"{_shares(experiment)}: choose a multiple of {experiment.launch.shares}, or "
                "change launch."
            )
        if first > ready + 1:
            raise UserError(
                f"{name} trains stage {first}, but no phase before it trains stage {ready + 1}. "
                f"Change {name}.stages."
            )
        ready = max(ready, last)
        if not any(term.weight > 0 for term in phase.terms.values()):
            raise UserError(f"{name} has no term with a weight. Set {name}.likelihood.weight.")
        through = getattr(phase.reconstruction, "through", 0)
        if through > last - first:
            raise UserError(
                f"{name}.reconstruction.through={through} cannot be used: the phase trains "
                f"{last - first + 1} stages. Allowed: 0 (all)"
                f"{f', 1 to {last - first}' if last > first else ''}. Change it there."
            )
        _check_penalty(name, phase, rotated)
        _check_volume(name, phase, stages)
        _check_noise(name, phase, stages)
        if phase.training.rotate_every:
            rotated.add(last)
        idle = {}
        if first == 1:
            idle["reconstruction.space"] = "the phase begins at the data themselves"
        for term, settings in phase.terms.items():
            if settings.weight == 0:
                others = type(settings).model_fields.keys() - {"weight", "penalty"}
                idle |= {f"{term}.{each}": f"{term}.weight is 0" for each in others}
        refuse(method.get(name, {}), f"methods.{experiment.method}.{name}", idle)
        inside = stages[first - 1].event_dim
        if stages[first - 1 + (through or last - first + 1) - 1].dim == inside:
            idle["reconstruction"] = "the manifold has all dimensions, and a projection is exact"
        if stages[last - 1].dim == stages[last - 1].latent_dim == inside or (
            not stages[last - 1].has_density
        ):
            idle["off_manifold"] = "nothing is off a manifold of all dimensions"
        refuse(groups.get(name, {}), name, idle)


@lru_cache(maxsize=64)
def _built(model: str, shape: tuple[int, ...]) -> list[Stage]:
    """Build a model's stages on no device, once for all experiments that differ elsewhere."""
    with torch.device("meta"):
        return ModelSettings.model_validate_json(model).build(shape)


def _check_arrays(experiment: Experiment) -> None:
    """Refuse arrays that do not fit in the free memory: events, batches of them and samples."""
    data = experiment.data
    each = NUMBER * math.prod(data.event_shape)
    if isinstance(data, ImageSettings) and each > (free := free_memory()):
        raise UserError(
            f"data.size: expected at most {math.isqrt(free // (NUMBER * data.channels)):,}, got "
            f"{data.size:,}: an image takes {each / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory "
            "are free. Change it with --params=data.size=32."
        )
    if isinstance(data, SyntheticSettings):
        for part, count in data.counts:
            check_memory(f"data.counts.{part}", count, 2 * each)  # drawn in float64
    for number, phase in enumerate(experiment.phases, start=1):
        if not isinstance(phase, RotationSettings):
            name = f"phase_{number}.training.batch_size"
            check_memory(name, phase.training.batch_size, each)
    check_memory("evaluation.samples", experiment.evaluation.samples, each)


def _check_numbers(experiment: Experiment) -> None:
    """Refuse flows that take minutes to build, or whose sizes overflow, before they are built."""
    for number, stage in enumerate(experiment.model.stages, start=1):
        for flow in (stage.flow, *stage.then):
            for name, value in flow:
                most = MOST_LAYERS if name in LAYERS else LARGEST_NUMBER
                numbers = value if isinstance(value, list) else [value]
                if any(isinstance(each, int) and each > most for each in numbers):
                    raise UserError(
                        f"stage_{number}.flow.{name}: expected at most {most:,}, got {value}. "
                        f"Change it with --params=stage_{number}.flow.{name}=<number>."
                    )


def _check_weights(experiment: Experiment, stages: Sequence[Stage]) -> None:
    """Refuse stages whose weights alone do not fit in the free memory; training takes more."""
    free = free_memory()
    for number, stage in enumerate(stages, start=1):
        count = experiment.model.charts * sum(each.numel() for each in stage.parameters())
        if NUMBER * count > free:
            raise UserError(
                f"stage_{number}.flow: expected at most {free // NUMBER:,} weights, got "
                f"{count:,}: each takes {NUMBER} bytes, and {free / 1e9:.1f} GB of memory are "
                "free. Set a smaller width or hidden, or fewer layers."
            )


def _shares(experiment: Experiment) -> str:
    launch = experiment.launch
    numbers = {
        "processes": launch.processes,
        "machines": launch.machines,
        "grad_accumulation_steps": launch.grad_accumulation_steps,
    }
    return " x ".join(f"launch.{name}={n}" for name, n in numbers.items() if n > 1)


def _check_rotation(name: str, phase: RotationSettings, ready: int) -> None:
    if phase.rotate != ready:
        trained = f"stages 1 to {ready} are trained by then" if ready else "nothing is trained yet"
        raise UserError(
            f"{name}.rotate={phase.rotate} cannot be used: {trained}, and only the last of them "
            "can be rotated, for the others act on what those before them leave. Allowed: "
            f"{ready or 'none'}. Change {name}.rotate, or the order of the phases."
        )


def _check_charts(experiment: Experiment) -> None:
    """Refuse several charts where phases do not train all of each at once."""
    count, everything = experiment.model.charts, len(experiment.model.stages)
    if count == 1:
        return
    for number, phase in enumerate(experiment.phases, start=1):
        name, wrong = f"phase_{number}", None
        if isinstance(phase, RotationSettings) or phase.training.rotate_every:
            wrong = "rotates latents"
        elif phase.stages != tuple(range(1, everything + 1)):
            wrong = f"trains {'stages' if len(phase.stages) > 1 else 'stage'} " + ", ".join(
                map(str, phase.stages)
            )
        elif phase.reconstruction.random_dim is not None or phase.reconstruction.through:
            wrong = (
                "penalises other projections than the whole (reconstruction.random_dim, .through)"
            )
        elif any(getattr(phase, term).weight > 0 for term in ABOUT_VOLUME):
            wrong = f"has a term about one chart's volume ({', '.join(ABOUT_VOLUME)})"
        if wrong is not None:
            raise UserError(
                f"charts={count} cannot be used with method={experiment.method}: all stages of "
                f"every chart are trained at once, but {name} {wrong}. Choose a method of one "
                "training, such as multi-chart, PR-D or EE-M, or leave charts out."
            )


def _check_volume(name: str, phase: Any, stages: Sequence[Stage]) -> None:
    """Refuse a likelihood where the volume of an injection is not known."""
    for number in phase.stages:
        if phase.likelihood.weight > 0 and not stages[number - 1].has_volume:
            raise UserError(
                f"{name}.likelihood.weight={phase.likelihood.weight:g} cannot be used: the volume "
                f"of stage_{number}'s flow has no closed form. Set {name}.likelihood.weight=0, "
                f"with a reconstruction or with {name}.manifold_likelihood.weight."
            )


def _check_noise(name: str, phase: Any, stages: Sequence[Stage]) -> None:
    """Refuse a flow that is told how much noise there is, and no noise."""
    told = [number for number in phase.stages if is_noise_conditional(stages[number - 1])]
    if told and (phase.input_noise == 0 or told != [phase.stages[0]]):
        raise UserError(
            f"stage_{told[-1]}.flow.type is told the scale of the noise in what it acts on, but "
            f"{name} adds none there. Set {name}.input_noise, the largest, with this stage as the "
            "phase's first, or choose glow or realnvp."
        )


def _check_penalty(name: str, phase: Any, rotated: set[int]) -> None:
    """Refuse a penalty that lacks what it is measured by."""
    penalty, first = phase.reconstruction, phase.stages[0]
    if penalty.space == "metric" and first > 1 and first - 1 not in rotated:
        raise UserError(
            f"{name}.reconstruction.space=metric weighs coordinates by what a rotation finds, but "
            f"no phase before it rotates stage {first - 1}. Add a phase with rotate: {first - 1}, "
            "or choose image or latent."
        )


def refuse(given: Mapping[str, Any], where: str, idle: Mapping[str, str]) -> None:
    """Refuse settings that were given, and would have no effect, for the reasons named."""
    for path in flatten(given):
        for name, why in idle.items():
            if path == name or (path.startswith(f"{name}.") and not path.endswith(".penalty")):
                raise UserError(
                    f"{where}.{path} would have no effect: {why}. Leave it out, or change what "
                    "makes it idle."
                )


@contextmanager
def _with_advice() -> Iterator[None]:
    """Say where a setting is changed that the rooms below have refused."""
    try:
        yield
    except UserError as error:
        name = str(error).partition("=")[0]
        where = name if " " not in name else "<name>"
        raise UserError(f"{error} Change it with --params={where}=<value>, or in conf/.") from error
