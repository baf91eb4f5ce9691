"""Checks that types cannot express: which settings fit together, and which have no effect."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from submanifold.common.errors import UserError
from submanifold.common.processes import check_memory, free_memory
from submanifold.config.merge import Tree
from submanifold.config.schema import Experiment, flatten
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.flows import is_noise_conditional
from submanifold.models import ModelSettings, Stage
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings

FLOAT_BYTES = 4
LOOPED = ("couplings", "steps", "layers", "blocks", "transforms")
MAX_LOOPED, MAX_NUMBER = 1000, 2**24
"""Settings of flows that are built in a loop, their bound, and the bound of all others."""


def validate(
    experiment: Experiment, method: Tree, given: Mapping[str, Tree], phases: Mapping[str, Tree]
) -> None:
    """Build the model without memory, and refuse settings that do not fit or have no effect.

    Args:
        experiment: The experiment.
        method: The method's entry.
        given: The user's settings by group.
        phases: The user's settings by phase.

    Raises:
        UserError: With the name of the setting.
    """
    _check_memory(experiment)
    _check_sizes(experiment)
    _check_condition(experiment)
    arguments = experiment.model.model_dump_json(), experiment.data.event_shape
    stages = _build(*arguments, experiment.is_conditional)
    _check_weights(experiment, stages)
    for number, stage in enumerate(stages, start=1):
        if stage.dim == stage.latent_dim:
            idle = {"off_manifold_scale": "the manifold has all dimensions"}
            refuse_idle(given.get(f"stage_{number}", {}), f"stage_{number}", idle)
    _check_charts(experiment)
    if experiment.model.stages[0].noise:
        raise UserError(
            f"stage_1.noise: expected 0, got {experiment.model.stages[0].noise:g}: it acts on the "
            "coordinates of earlier stages. Set it on a later stage, or set the input_noise of a "
            "phase."
        )
    trained, rotated = 0, set()
    for name, phase in experiment.phases.items():
        if isinstance(phase, RotationSettings):
            _check_rotation(name, phase, trained)
            rotated.add(phase.rotate)
            continue
        _check_training(name, phase, experiment, stages, trained, rotated)
        trained = max(trained, phase.stages[-1])
        entry = method["phases"].get(name, {})
        refuse_idle(entry, f"methods.{experiment.method}.phases.{name}", _idle_terms(phase))
        refuse_idle(phases.get(name, {}), name, _idle_terms(phase) | _idle_manifold(phase, stages))


@lru_cache(maxsize=64)
def _build(model: str, shape: tuple[int, ...], is_conditional: bool) -> list[Stage]:
    """Build a model's stages on the meta device, once for all experiments with this model."""
    context = {"classes": 2} if is_conditional else None  # their number changes little
    with torch.device("meta"), torch.random.fork_rng([]):  # the global generator is the user's
        return ModelSettings.model_validate_json(model).build(shape, context=context)


def _check_condition(experiment: Experiment) -> None:
    """Refuse what conditional models do not support."""
    if not experiment.is_conditional:
        return
    wrong = {
        "launch.processes": (1, experiment.launch.processes),
        "launch.machines": (1, experiment.launch.machines),
        "charts": (1, experiment.model.charts),
        "ood": ("null", experiment.ood),
        **{
            f"{name}.training.activation_checkpointing": (
                "false", phase.training.activation_checkpointing
            )
            for name, phase in experiment.trainings.items()
        },
    }  # fmt: skip
    for name, (expected, found) in wrong.items():
        if found not in (1, None, False):
            raise UserError(
                f"{name}: expected {expected} with data.condition, got {found}. Change either."
            )


def _check_memory(experiment: Experiment) -> None:
    """Refuse arrays of events, batches and samples that exceed the free memory."""
    data = experiment.data
    size = FLOAT_BYTES * math.prod(data.event_shape)
    if isinstance(data, ImageSettings) and size > (free := free_memory()):
        raise UserError(
            f"data.size: expected at most {math.isqrt(free // (FLOAT_BYTES * data.channels)):,}, "
            f"got {data.size:,}: an image takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
            "memory are free. Change it with --params=data.size=32."
        )
    if isinstance(data, SyntheticSettings):
        for part, count in data.counts:
            check_memory(f"data.counts.{part}", count, 2 * size)  # drawn in float64
    for name, phase in experiment.trainings.items():
        check_memory(f"{name}.training.batch_size", phase.training.batch_size, size)
    check_memory("evaluation.samples", experiment.evaluation.samples, size)


def _check_sizes(experiment: Experiment) -> None:
    """Refuse flows that take minutes to build or whose sizes overflow, before they are built."""
    for number, stage in enumerate(experiment.model.stages, start=1):
        for flow in (stage.flow, *stage.then):
            for name, value in flow:
                largest = MAX_LOOPED if name in LOOPED else MAX_NUMBER
                numbers = value if isinstance(value, list) else [value]
                if any(isinstance(each, int) and each > largest for each in numbers):
                    raise UserError(
                        f"stage_{number}.flow.{name}: expected at most {largest:,}, got {value}. "
                        f"Change it with --params=stage_{number}.flow.{name}=<number>."
                    )


def _check_weights(experiment: Experiment, stages: Sequence[Stage]) -> None:
    """Refuse stages whose weights exceed the free memory; training takes more."""
    free = free_memory()
    for number, stage in enumerate(stages, start=1):
        count = experiment.model.charts * sum(each.numel() for each in stage.parameters())
        if FLOAT_BYTES * count > free:
            raise UserError(
                f"stage_{number}.flow: expected at most {free // FLOAT_BYTES:,} weights, got "
                f"{count:,}: each takes {FLOAT_BYTES} bytes, and {free / 1e9:.1f} GB of memory are "
                "free. Set a smaller width or hidden, or fewer layers."
            )


def _check_rotation(name: str, phase: RotationSettings, trained: int) -> None:
    if phase.rotate != trained:
        raise UserError(
            f"{name}.rotate: expected {trained or 'a phase that trains before it'}, got "
            f"{phase.rotate}: only the last trained stage can be rotated. Change {name}.rotate, or "
            "the order of the phases."
        )


def _check_charts(experiment: Experiment) -> None:
    """Refuse several charts unless every phase trains all stages of each at once."""
    charts, stages = experiment.model.charts, len(experiment.model.stages)
    for name, phase in experiment.phases.items() if charts > 1 else ():
        wrong = None
        if isinstance(phase, RotationSettings):
            wrong = "rotates latents"
        elif phase.stages != tuple(range(1, stages + 1)):
            wrong = f"trains only stages {', '.join(map(str, phase.stages))}"
        elif phase.reconstruction.random_dim is not None or phase.reconstruction.through:
            wrong = "sets reconstruction.random_dim or reconstruction.through"
        elif volume := [term for term, settings in phase.terms.items()
                        if settings.about_volume and settings.weight > 0]:  # fmt: skip
            wrong = f"has a term of one chart's volume ({', '.join(volume)})"
        if wrong is not None:
            raise UserError(
                f"charts: expected 1 with method={experiment.method}, got {charts}: phase {name} "
                f"{wrong}, but all stages of every chart are trained at once. Choose a method with "
                "one training, such as multi-chart, PR-D or EE-M, or leave charts out."
            )


def _check_training(
    name: str,
    phase: PhaseSettings,
    experiment: Experiment,
    stages: Sequence[Stage],
    trained: int,
    rotated: set[int],
) -> None:
    """Refuse a phase whose batch, order, terms, noise or penalty cannot work."""
    first, last, parts = phase.stages[0], phase.stages[-1], experiment.launch.parts
    if phase.training.batch_size % parts:
        raise UserError(
            f"{name}.training.batch_size: expected a multiple of {parts} (launch.processes x "
            f"launch.machines x launch.grad_accumulation_steps), got {phase.training.batch_size}. "
            "Change either."
        )
    if first > trained + 1:
        raise UserError(
            f"{name}.stages: expected stage {trained + 1}, which no phase before trains, got "
            f"{first}. Change {name}.stages."
        )
    if not any(term.weight > 0 for term in phase.terms.values()):
        raise UserError(f"{name}: expected a term with a weight. Set {name}.likelihood.weight.")
    if phase.reconstruction.through > last - first:
        allowed = f"0 (all) to {last - first}" if last > first else "0 (all)"
        raise UserError(
            f"{name}.reconstruction.through: expected {allowed} for a phase that trains "
            f"{last - first + 1} stages, got {phase.reconstruction.through}. Change it."
        )
    if phase.reconstruction.space == "metric" and first > 1 and first - 1 not in rotated:
        raise UserError(
            f"{name}.reconstruction.space: expected image or latent, got metric: no phase before "
            f"rotates stage {first - 1}. Choose one, or add a phase with rotate: {first - 1}."
        )
    for number in phase.stages:
        if phase.likelihood.weight > 0 and not stages[number - 1].has_volume:
            raise UserError(
                f"{name}.likelihood.weight: expected 0, got {phase.likelihood.weight:g}: the "
                f"volume of stage_{number}'s flow has no closed form. Set it to 0, and set a "
                f"reconstruction or {name}.manifold_likelihood.weight."
            )
    conditional = [number for number in phase.stages if is_noise_conditional(stages[number - 1])]
    if conditional and (phase.input_noise == 0 or conditional != [first]):
        raise UserError(
            f"{name}.input_noise: expected the largest noise scale of the noise-conditional flow "
            f"of stage_{conditional[-1]}, which must be the phase's first stage, got "
            f"{phase.input_noise:g}. Set it, or choose another flow such as glow or realnvp."
        )
    if (low := phase.input_noise_min) is not None and not (conditional and low < phase.input_noise):
        expected = f"less than input_noise={phase.input_noise:g}" if conditional else "null"
        raise UserError(
            f"{name}.input_noise_min: expected {expected}, got {low:g}: it is the smallest noise "
            "scale of a noise-conditional flow. Change it."
        )


def _idle_terms(phase: PhaseSettings) -> dict[str, str]:
    """Settings of a phase's terms without effect, and why."""
    idle = {}
    if phase.stages[0] == 1:
        idle["reconstruction.space"] = "the phase starts at the data"
    for term, settings in phase.terms.items():
        if settings.weight == 0:
            others = type(settings).model_fields.keys() - {"weight", "penalty"}
            idle |= {f"{term}.{each}": f"{term}.weight is 0" for each in others}
    return idle


def _idle_manifold(phase: PhaseSettings, stages: Sequence[Stage]) -> dict[str, str]:
    """Terms without effect because the manifold has all dimensions, and why."""
    first, last = phase.stages[0], phase.stages[-1]
    outer_dim, end = stages[first - 1].event_dim, stages[last - 1]
    idle, why = {}, "the manifold has all dimensions"
    through = phase.reconstruction.through or last - first + 1
    if stages[first - 1 + through - 1].dim == outer_dim:
        idle["reconstruction"] = f"{why}, and the projection is exact"
    if end.dim == end.latent_dim == outer_dim or not end.has_density:
        idle["off_manifold"] = why
    return idle


def refuse_idle(given: Mapping[str, Any], where: str, idle: Mapping[str, str]) -> None:
    """Refuse settings that were given but have no effect, for the reasons in ``idle``."""
    for path in flatten(given):
        for name, why in idle.items():
            if path == name or (path.startswith(f"{name}.") and not path.endswith(".penalty")):
                raise UserError(
                    f"{where}.{path}: has no effect, because {why}. Leave it out, or change the "
                    "reason."
                )
