"""From the tables in conf/ and the user's settings to one typed experiment."""

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial, reduce
from itertools import accumulate, pairwise
from typing import Any

from submanifold.common.errors import UserError, did_you_mean, list_names, unexpected
from submanifold.common.files import expand_user
from submanifold.common.settings import flatten, parse_yaml, read_settings
from submanifold.config.merge import AUTO, Tree, entry, find_data, group, merge
from submanifold.config.project import PACKAGED_CONF
from submanifold.config.schema import Choices, EvaluationSettings, Experiment, TimeBudget
from submanifold.data.settings import DataSettings, ImageSettings, TableSettings, read_data_settings
from submanifold.data.synthetic import MANIFOLDS
from submanifold.flows import FLOWS
from submanifold.models import ModelSettings, StageSettings
from submanifold.training.phase import TrainingSettings
from submanifold.training.phases import AnyPhaseSettings, PhaseSettings
from submanifold.training.rotation import RotationSettings

BRIEF_MINUTES = 10  # time budgets below have a brief evaluation
IMAGES_ONLY = ("dequantizations", "inception_weights")
VECTOR_FLOWS = {"soft_glow": "soft_realnvp"}  # for the flow of images with the same property
CONFIGURATION_TABLES = ("datasets", "methods", "stage_defaults", "training_defaults")
SETTING_GROUPS = ("data", "training", "evaluation")
PHASE_FIELDS = {*PhaseSettings.model_fields, *RotationSettings.model_fields}
TRAINING = {
    name: field.default
    for name, field in TrainingSettings.model_fields.items()
    if not field.is_required() and name != "span"
}
Method = tuple[ModelSettings, dict[str, AnyPhaseSettings]]


def resolve(parameters: Mapping[str, Any]) -> Experiment:
    """Select one experiment from the tables and the user's settings.

    Precedence, from low to high: the defaults of a stage (by its flow) and of a phase (by the first
    stage that it trains), the dataset's entry, the method's entry, the dataset's ``phases``, the
    user's ``training`` of every phase, the user's settings. A stage beyond the method's last one is
    added together with a phase that trains it. No data are read, and no model is built: see
    :func:`.validate`.
    """
    # names with an underscore hold YAML anchors; Kedro drops them from all other configuration
    user = {name: value for name, value in parameters.items() if not name.startswith("_")}
    tables = {name: group(name, user.pop(name, None)) for name in CONFIGURATION_TABLES}
    dataset = entry(tables["datasets"], user.get("dataset"), "dataset")
    if user.get("method") == AUTO:
        user["method"] = dataset.get("method")
    method = entry(tables["methods"], user.get("method"), "method")
    user_stages, user_phases = _user_groups(user, method)
    groups = {name: group(name, user.pop(name, None)) for name in SETTING_GROUPS}
    training = groups["training"]
    minutes = _minutes(training.pop("minutes", None), {"training": training, **user_phases})
    data = read_data_settings(merge(_data_entry(dataset), groups["data"], "data"))
    stages, phase_defaults = _stages(dataset, method, user_stages, tables)
    if isinstance(data, ImageSettings):
        _fit_dims(stages, user_stages, math.prod(data.event_shape))
    phases = _phases(_method_phases(dataset, method), user_phases, training, phase_defaults)
    _refuse_unknown(user, [*phases])
    choices = read_settings(Choices, user, "")
    of_stages = tuple(read_settings(StageSettings, stages[name], name) for name in stages)
    model = {"stages": of_stages, "charts": choices.charts or method.get("charts", 1)}
    return Experiment(
        **dict(choices),
        data=data,
        model=read_settings(ModelSettings, model, ""),
        phases=_typed(phases),
        evaluation=_evaluation(groups["evaluation"], data, minutes),
        ood_data=_ood(tables["datasets"], user, data),
        minutes=minutes,
    )


def default_method(dataset: str, dim: int) -> Method:
    """Return the model of a dataset's default method, of a dimension, and the phases that train it.

    Example:
        >>> model, phases = default_method("photos", dim=500)
        >>> [*phases]
        ['density', 'rotation', 'reconstruction', 'rotation_2', 'code_flow']
    """
    tables = packaged_tables()
    chosen = entry(tables["datasets"], dataset, "dataset")
    method = entry(tables["methods"], chosen["method"], "method")
    stages, phase_defaults = _stages(chosen, method, {"stage_1": {"dim": dim}}, tables)
    model = ModelSettings.model_validate({"stages": [*stages.values()]})
    return model, _typed(_phases(_method_phases(chosen, method), {}, {}, phase_defaults))


@cache
def packaged_tables() -> Tree:
    """Return the parameters of conf/base as they are installed, the tables among them."""
    texts = (file.read_text("utf-8") for file in PACKAGED_CONF.glob("base/parameters*.yml"))
    return {name: table for text in texts for name, table in parse_yaml(text).items()}


def _data_entry(dataset: Tree) -> Tree:
    return {
        name: value
        for name, value in dataset.items()
        if name not in ("method", "phases") and not name.startswith("stage_")
    }


def _evaluation(settings: Tree, data: DataSettings, minutes: float | None) -> EvaluationSettings:
    settings = {"brief": minutes is not None and minutes < BRIEF_MINUTES, **settings}
    if not isinstance(data, ImageSettings):
        settings = {name: value for name, value in settings.items() if name not in IMAGES_ONLY}
    return read_settings(EvaluationSettings, settings, "evaluation")


def _refuse_unknown(user: Tree, phases: Sequence[str]) -> None:
    if unknown := [str(name) for name in user if name not in Choices.model_fields]:
        known = [*dict.fromkeys([*Choices.model_fields, *SETTING_GROUPS, "stage_<n>", *phases])]
        hint = did_you_mean(unknown[0], known)
        expected = f"one of {list_names(known, unknown[0])}"
        raise UserError(f"{', '.join(unknown)}: expected {expected}.{hint}")


def _minutes(minutes: Any, user: Tree) -> float | None:
    if minutes is None:
        return None
    for name in flatten(user):
        if name.endswith((".probes", "training.steps")):
            fix = "A time budget sets the steps of all phases. Omit either"
            raise unexpected("training.minutes", "no steps with it", name, fix)
    return read_settings(TimeBudget, {"minutes": minutes}, "training").minutes


def _user_groups(user: Tree, method: Tree) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Take the settings of stages and phases out of the user's; ``stage_<n>`` may hold both."""
    stages: dict[str, Tree] = {}
    phases: dict[str, Tree] = {}
    for name in [name for name in user if name in method["phases"] or name.startswith("stage_")]:
        settings = group(name, user.pop(name))
        if not name.startswith("stage_"):
            phases[name] = settings
            continue
        is_phase = name in method["phases"] or name not in method
        phase = {key: settings.pop(key) for key in [*settings] if is_phase and key in PHASE_FIELDS}
        phases |= {name: phase} if phase else {}
        stages[name] = settings
    return stages, phases


def _stages(
    dataset: Tree, method: Tree, user: dict[str, Tree], tables: Tree
) -> tuple[dict[str, Tree], list[Tree]]:
    """Return the stages by name, and for each the defaults of a phase that starts at it."""
    names = [*dict.fromkeys(name for name in (*method, *user) if name.startswith("stage_"))]
    ordered = [f"stage_{n}" for n in range(1, len(names) + 1)]
    if set(names) != set(ordered):
        fix = "Add the missing ones, or omit the others"
        got = ", ".join(sorted(names))
        raise unexpected("stage_<n>", "numbers from 1 without a gap", got, fix)
    stages, phase_defaults = {}, []
    for name in ordered:
        stage, changes = method.get(name, {}), user.get(name, {})
        of_dataset = dict(dataset.get(name, {})) if name in method else {}
        phase = of_dataset.pop("phase", {})
        stage = merge(stage, _fitting_flow(of_dataset, stage), name)
        is_list = isinstance(changes.get("flow"), list)
        if is_list or _type(changes) not in (None, _type(stage)):
            stage.pop("flow", None)  # the tables' settings are of another flow
        stage = merge(stage, changes, name)
        flows = stage.get("flow", {}) if is_list else [stage.get("flow", {})]
        flows = [group(f"{name}.flow", flow) for flow in flows]
        by_flow = [_flow_defaults(tables["stage_defaults"], flow, name) for flow in flows]
        stage["flow"] = [
            merge(default["flow"], flow) for default, flow in zip(by_flow, flows, strict=True)
        ]
        stages[name] = stage
        usual = {"training": TRAINING | tables.get("training_defaults", {})}
        usual = merge(usual, by_flow[0]["phase"] if by_flow else {})
        phase_defaults.append(merge(usual, phase))
    return stages, phase_defaults


def _fit_dims(stages: dict[str, Tree], user: dict[str, Tree], size: int) -> None:
    """Halve the size of the events where a method's dimension exceeds it, but not a user's.

    Methods are for 32 pixels and three channels, and smaller images have fewer coordinates.
    """
    for name, stage in stages.items():
        dim = stage.get("dim")
        if isinstance(dim, int) and dim > size and "dim" not in user.get(name, {}):
            dim = stage["dim"] = max(1, size // 2)
        size = size // 2 if dim == "half" else dim or size


def _fitting_flow(of_dataset: Tree, stage: Tree) -> Tree:
    """Adapt a dataset's flow of points to the method's: it replaces a flow of images only."""
    flow = FLOWS.get(str(_type(stage)))
    if _type(of_dataset) != _type(stage) and flow is not None and 1 in flow.axes:
        return {name: value for name, value in of_dataset.items() if name != "flow"}
    if "flow" in of_dataset and _type(stage) in VECTOR_FLOWS:
        return {**of_dataset, "flow": {**of_dataset["flow"], "type": VECTOR_FLOWS[_type(stage)]}}
    return of_dataset


def _type(stage: Tree) -> Any:
    flow = stage.get("flow")
    return flow.get("type") if isinstance(flow, Mapping) else None


def _flow_defaults(defaults: Tree, flow: Tree, stage: str) -> Tree:
    """Return the defaults of a flow; a registered flow without an entry takes those of its kind."""
    name = flow.get("type", "realnvp")
    if name in FLOWS and name not in defaults:
        images = 3 in FLOWS[name].axes
        return {"flow": {"type": name}, "phase": defaults["glow" if images else "realnvp"]["phase"]}
    return entry(defaults, name, f"{stage}.flow.type")


def _method_phases(dataset: Tree, method: Tree) -> Tree:
    """Return the phases of a method, with the dataset's settings of those that it has."""
    changes = dataset["phases"]
    return {
        name: merge(phase, changes.get(name, {}), name) for name, phase in method["phases"].items()
    }


def _phases(
    method: Tree, user: dict[str, Tree], training: Tree, defaults: list[Tree]
) -> dict[str, Tree]:
    """Return the phases, with one for each stage that none trains."""
    phases: dict[str, Tree] = {}
    for name in dict.fromkeys([*method, *user]):
        phases[name] = _phase(name, method, user, training, defaults, phases)
    trained = {number for phase in phases.values() for number in phase.get("stages", ())}
    for number in sorted({*range(1, len(defaults) + 1)} - trained):
        name = f"stage_{number}"
        phases[name] = _phase(name, method, user, training, defaults, phases)
    return phases


def _phase(
    name: str,
    method: Tree,
    user: dict[str, Tree],
    training: Tree,
    defaults: list[Tree],
    before: Mapping[str, Tree],
) -> Tree:
    """Merge the settings of a phase; those before it are known."""
    of_method, of_user = method.get(name, {}), user.get(name, {})
    phase = merge(of_method, of_user, name)
    if "rotate" in phase:
        return phase
    number = name.removeprefix("stage_")
    usual = "all" if name in method or not number.isdigit() else int(number)
    stages = _stage_numbers(phase.get("stages", usual), len(defaults), name)
    continued: Tree = {}
    if first := phase.get("continues"):
        trainings = {name: phase for name, phase in before.items() if "training" in phase}
        shared = entry(trainings, first, f"{name}.continues")["training"]
        continued = {"training": {"cooldown_fraction": shared["cooldown_fraction"]}}
    layers = [defaults[stages[0] - 1], continued, of_method, {"training": training}, of_user]
    phase = reduce(partial(merge, where=name), layers)
    penalty = group(f"{name}.reconstruction", phase.get("reconstruction"))
    if penalty.get("penalty") == "none":
        penalty = {"penalty": "none"}
    return phase | {"reconstruction": penalty, "stages": stages}


def _typed(phases: dict[str, Tree]) -> dict[str, Any]:
    continued = {name: phase.pop("continues", name) for name, phase in phases.items()}
    typed: dict[str, Any] = {
        name: read_settings(RotationSettings if "rotate" in phase else PhaseSettings, phase, name)
        for name, phase in phases.items()
    }
    for first in {first for name, first in continued.items() if name != first}:
        names = [name for name in typed if continued[name] == first]
        ends = [0, *accumulate(typed[name].training.steps for name in names)]
        for name, (start, end) in zip(names, pairwise(ends), strict=True):
            span = {"span": (start / ends[-1], end / ends[-1])}
            training = typed[name].training.model_copy(update=span)
            typed[name] = typed[name].model_copy(update={"training": training})
    return typed


def _stage_numbers(stages: Any, count: int, name: str) -> list[int]:
    everything = [*range(1, count + 1)]
    numbers = everything if stages == "all" else [stages] if type(stages) is int else stages
    is_list = isinstance(numbers, list) and all(type(n) is int for n in numbers)
    if not is_list or not numbers or numbers != everything[numbers[0] - 1 : numbers[-1]]:
        expected = (
            "the number of a stage, a list of consecutive numbers such as [1, 2], or all, "
            f"among stages 1 to {count}"
        )
        fix = f"Change it with --params={name}.stages=<number>"
        raise unexpected(f"{name}.stages", expected, stages, fix)
    return numbers


def _ood(datasets: Tree, user: Tree, data: DataSettings) -> ImageSettings | TableSettings | None:
    """Return the source of out-of-distribution images or rows, prepared like the model's data."""
    if (chosen := user.get("ood")) is None:
        return None
    if isinstance(data, TableSettings):
        if not expand_user(str(chosen)).exists():
            expected = "the path of a table with the columns of the model's"
            raise unexpected("ood", expected, chosen, "Change it with --params=ood=<path>")
        return read_settings(TableSettings, {"path": str(chosen)}, "ood")
    if not isinstance(data, ImageSettings):
        fix = "Leave it out, or choose a dataset of images or a table"
        raise unexpected("ood", "null for points", chosen, fix)
    if chosen == user["dataset"]:
        if data.labels is None:
            fix = (
                "Choose another one, or select the in-distribution labels with data.labels: "
                "images with other labels are then out of distribution"
            )
            raise unexpected("ood", "another dataset than the model's", chosen, fix)
        return data.model_copy(update={"labels": None, "other_labels": data.labels})
    path = find_data("ood", str(chosen), datasets)
    source = {"source": "folder", "path": str(chosen)}
    source = _data_entry(datasets[path]) if isinstance(path, str) else source
    if source["source"] in MANIFOLDS:
        raise UserError(f"ood: expected images, got the points {chosen}. Choose images.")
    form = {"size": data.size, "channels": data.channels}
    if source["source"] != "photos":
        form["margin"] = data.margin
    return read_settings(ImageSettings, {**source, **form}, f"datasets.{chosen}")
