"""Checks that types cannot express: which settings fit together."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from submanifold.common.errors import error_prefix, unexpected
from submanifold.config.schema import Experiment
from submanifold.data.settings import TableSettings
from submanifold.flows import is_noise_conditional
from submanifold.losses.volume import ManifoldLikelihood
from submanifold.models import ModelSettings, Stage
from submanifold.training.phases import DENSITY, PhaseSettings
from submanifold.training.rotation import RotationSettings


def validate(experiment: Experiment, record: Path | None = None) -> None:
    """Read what the model depends on, and build it without memory.

    Raises a :class:`.UserError` for settings that do not fit. What a table has is read from its
    ``record`` (:func:`.tables.schema.record_path`), or recorded there.
    """
    model, data = experiment.model, experiment.data
    if isinstance(data, TableSettings):
        with error_prefix("data"):
            data.read(record)
    stages = _build(model.model_dump_json(), data.event_shape, experiment.is_conditional)
    noise = model.stages[0].noise
    if noise > 0:
        got = f"{noise:g}: it acts on the coordinates of earlier stages"
        fix = "Set it on a later stage, or set the input_noise of a phase"
        raise unexpected("stage_1.noise", "0", got, fix)
    if experiment.is_conditional:
        if model.charts > 1:
            raise unexpected("charts", "1 with data.condition", model.charts, "Change either")
        if experiment.ood is not None:
            raise unexpected("ood", "null with data.condition", experiment.ood, "Change either")
    if model.charts > 1:
        _check_charts(experiment)
    if experiment.calibration == "cross":
        _check_folds(experiment)
    trained, rotated = 0, set[int]()
    for name, phase in experiment.phases.items():
        if isinstance(phase, PhaseSettings):
            _check_stages(name, phase, trained, rotated)
            _check_volume(name, phase, stages)
            _check_noise(name, phase, stages)
            trained = max(trained, phase.stages[-1])
            continue
        if phase.rotate != trained:
            expected = str(trained or "a phase that trains before it")
            got = f"{phase.rotate}: only the last trained stage can be rotated"
            fix = f"Change {name}.rotate, or the order of the phases"
            raise unexpected(f"{name}.rotate", expected, got, fix)
        rotated.add(phase.rotate)


@lru_cache(maxsize=64)
def _build(model: str, shape: tuple[int, ...], is_conditional: bool) -> list[Stage]:
    """Build a model's stages on the meta device, once for all experiments with this model."""
    context = {"classes": 2} if is_conditional else None  # their number changes little
    with torch.device("meta"), torch.random.fork_rng([]):  # the global generator is the user's
        return ModelSettings.model_validate_json(model).build(shape, context=context)


def _check_charts(experiment: Experiment) -> None:
    """Refuse several charts unless every phase trains all stages of each at once."""
    everything = tuple(range(1, len(experiment.model.stages) + 1))
    for name, phase in experiment.phases.items():
        if (
            isinstance(phase, RotationSettings)
            or phase.stages != everything
            or phase.reconstruction.random_dim is not None
            or phase.reconstruction.last_stage
            or any(isinstance(term, ManifoldLikelihood) for term in phase.terms.values())
        ):
            got = (
                f"{experiment.model.charts}: {name} is no training of all stages of every "
                "chart at once"
            )
            fix = "Choose a method with one, such as multi-chart, PR-D or EE-M, or leave charts out"
            raise unexpected("charts", f"1 with method={experiment.method}", got, fix)


def _check_folds(experiment: Experiment) -> None:
    """Refuse folds of what no phase for the density of a table trains."""
    phase = experiment.trainings.get(DENSITY)
    is_density = phase is not None and phase.stages == (1,) and len(experiment.model.stages) == 1
    fix = "Change either, or set calibration=split"
    for setting, is_violated, expected, got in (
        ("dataset", experiment.data.kind != "table", "a table", experiment.dataset),
        ("method", not is_density, "one whose phase density trains all", experiment.method),
        ("charts", experiment.model.charts > 1, "1", experiment.model.charts),
        ("training.minutes", experiment.minutes is not None, "null", experiment.minutes),
        ("ood", experiment.ood is not None, "null", experiment.ood),
        ("data.condition", experiment.is_conditional, "null", "columns"),
    ):
        if is_violated:
            raise unexpected(setting, f"{expected} with calibration=cross", got, fix)


def _check_stages(name: str, phase: PhaseSettings, trained: int, rotated: set[int]) -> None:
    """Refuse a phase whose stages do not follow those that are trained and rotated before it."""
    first, count = phase.stages[0], len(phase.stages)
    if first > trained + 1:
        expected = f"stage {trained + 1}, which no phase before trains"
        raise unexpected(f"{name}.stages", expected, first, f"Change {name}.stages")
    last_stage = phase.reconstruction.last_stage
    if last_stage is not None and last_stage > count:
        expected = f"1 to {count}, the stages of the phase"
        raise unexpected(f"{name}.reconstruction.last_stage", expected, last_stage, "Change it")
    if phase.reconstruction.space == "metric" and first > 1 and first - 1 not in rotated:
        got = f"metric: no phase before rotates stage {first - 1}"
        fix = f"Choose one, or add a phase with rotate: {first - 1}"
        raise unexpected(f"{name}.reconstruction.space", "image or latent", got, fix)


def _check_volume(name: str, phase: PhaseSettings, stages: Sequence[Stage]) -> None:
    """Refuse a density that has no closed form."""
    weight = phase.likelihood.weight
    without_volume = [number for number in phase.stages if not stages[number - 1].has_volume]
    if weight > 0 and without_volume:
        got = f"{weight:g}: the volume of the flow of stages {without_volume} has no closed form"
        fix = f"Set it to 0, and set a reconstruction or {name}.manifold_likelihood.weight"
        raise unexpected(f"{name}.likelihood.weight", "0", got, fix)


def _check_noise(name: str, phase: PhaseSettings, stages: Sequence[Stage]) -> None:
    """Refuse noise scales that the flow of the phase does not take, or their absence."""
    smallest, largest = phase.input_noise_min, phase.input_noise
    noisy = [number for number in phase.stages if is_noise_conditional(stages[number - 1])]
    if noisy and (largest == 0 or noisy != [phase.stages[0]]):
        expected = (
            "the largest noise scale of a noise-conditional flow, which must be the phase's first "
            "stage"
        )
        fix = "Set it, or choose another flow such as glow or realnvp"
        raise unexpected(f"{name}.input_noise", expected, f"{largest:g} with stages {noisy}", fix)
    if smallest is not None and not (noisy and smallest < largest):
        expected = f"less than input_noise={largest:g}" if noisy else "null"
        got = f"{smallest}: it is the smallest noise scale of a noise-conditional flow"
        raise unexpected(f"{name}.input_noise_min", expected, got, "Change it")
