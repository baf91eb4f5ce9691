"""Checks that types cannot express: which settings fit together."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from submanifold.common.errors import UserError
from submanifold.config.schema import Experiment
from submanifold.flows import is_noise_conditional
from submanifold.models import ModelSettings, Stage
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings


def validate(experiment: Experiment) -> None:
    """Build the model without memory, and refuse settings that do not fit.

    Raises:
        UserError: With the name of the setting.
    """
    _check_condition(experiment)
    arguments = experiment.model.model_dump_json(), experiment.data.event_shape
    stages = _build(*arguments, experiment.is_conditional)
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
    wrong = {"charts": (1, experiment.model.charts), "ood": ("null", experiment.ood)}
    for name, (expected, found) in wrong.items():
        if found not in (1, None):
            raise UserError(
                f"{name}: expected {expected} with data.condition, got {found}. Change either."
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
    first, last = phase.stages[0], phase.stages[-1]
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
