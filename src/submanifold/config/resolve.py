"""From the tables in conf/ and the user's settings to one typed experiment."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from submanifold.common.errors import UserError, did_you_mean, error_prefix
from submanifold.common.settings import read_settings
from submanifold.config.merge import (
    Tree,
    add_rotations,
    check_group,
    entry,
    merge,
    merge_phase,
    without_overridden,
)
from submanifold.config.schema import (
    Choices,
    EvaluationSettings,
    Experiment,
    TimeBudget,
    flatten,
)
from submanifold.config.validate import validate
from submanifold.data.settings import DataSettings, ImageSettings, TableSettings, read_data_settings
from submanifold.data.synthetic import MANIFOLDS
from submanifold.flows import FLOWS
from submanifold.models import ModelSettings, StageSettings
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings

SMALLEST_IMAGE = 7
"""Pixels: the side of the patches of the structural similarity."""
IMAGES_ONLY = ("dequantizations", "inception_weights")
VECTOR_FLOWS = {"soft_glow": "soft_realnvp"}
"""The flow of vectors that replaces a flow of images with a property that Glow does not have."""
SINGLE = ("data", "training", "evaluation")


def resolve(
    parameters: Mapping[str, Any],
    typed: Mapping[str, Any] | None = None,
    raw_folder: Path | None = None,
    data: DataSettings | None = None,
) -> Experiment:
    """Select one experiment from the tables and check it.

    Precedence, from low to high: the defaults of a stage (by its flow) and of a phase (by the first
    stage that it trains), the dataset's entry, the method's entry, files of the environment, the
    command line. ``training`` overrides the training of every phase, and ``<phase>.training``
    overrides ``training`` of the same place. A stage beyond the method's last one is added together
    with a phase that trains it.

    ``training.minutes`` is a time budget (:attr:`.Experiment.minutes`), for which the steps of the
    phases are proportions. The command line may not set both.

    Defaults that do not apply, such as Huber's delta for a squared penalty, are dropped.

    Args:
        parameters: The tables and the user's settings, from files and the command line.
        typed: The settings from the command line alone.
        raw_folder: Folder in which the scans of tables are recorded.
        data: The data, in place of the settings; for callers from Python.

    Raises:
        UserError: A name is unknown, or a value is not allowed.
    """
    # names with an underscore hold YAML anchors; Kedro drops them from all other configuration
    given = {name: value for name, value in parameters.items() if not name.startswith("_")}
    tables = {name: given.pop(name) for name in ("datasets", "methods")}
    defaults = {name: given.pop(f"{name}_defaults") for name in ("stage", "training", "evaluation")}
    for name, table in (*tables.items(), *defaults.items()):
        check_group(name, table)
    dataset = entry(tables["datasets"], given.get("dataset"), "dataset")
    if given.get("method") == "auto":
        given["method"] = dataset.get("method")
    method = entry(tables["methods"], given.get("method"), "method")
    given["method"] = method.pop("name")
    check_group(f"methods.{given['method']}.phases", method.get("phases"))
    if given.get("rotated"):
        method["phases"] = add_rotations(method)
    stages, phases = _user_groups(given, method)
    stage_settings, phase_defaults = _stages(dataset, method, stages, defaults["stage"])
    single = {name: given.pop(name, {}) for name in SINGLE}
    for name, value in single.items():
        check_group(name, value)
    single["training"], minutes = _take_minutes(single["training"], typed or {})
    data_entry = {name: value for name, value in dataset.items()
                if name != "method" and not name.startswith("stage_")}  # fmt: skip
    data = data or read_data_settings(merge(data_entry, single["data"], "data"))
    if isinstance(data, TableSettings):
        with error_prefix("data"):
            data.read(raw_folder)
        stage_settings = {name: _half(stage, data) for name, stage in stage_settings.items()}
    if isinstance(data, ImageSettings) and data.size < SMALLEST_IMAGE:
        raise UserError(
            f"data.size: expected at least {SMALLEST_IMAGE}, got {data.size}. Change it with "
            "--params=data.size=32."
        )
    ood_data = _ood(tables["datasets"], given, data)
    phases = without_overridden(phases, single["training"], typed or {})
    phase_settings = _phases(
        method,
        phases,
        single["training"],
        len(stage_settings),
        phase_defaults,
        defaults["training"],
    )
    evaluation = dict(defaults["evaluation"])
    if not isinstance(data, ImageSettings):
        evaluation = {k: v for k, v in evaluation.items() if k not in IMAGES_ONLY}
    evaluation = merge(evaluation, single["evaluation"], "evaluation")
    _check_names(given, phase_settings)
    choices = read_settings(Choices, given, "")
    if choices.register_as is not None and data.kind == "points":
        raise UserError(
            f"register_as: expected null for points, got {choices.register_as}. Leave it out, or "
            "choose a dataset of images or a table."
        )
    charts = choices.charts or method.get("charts", 1)
    settings = tuple(
        read_settings(StageSettings, found, name) for name, found in stage_settings.items()
    )
    experiment = Experiment(
        **dict(choices),
        data=data,
        model=read_settings(ModelSettings, {"stages": settings, "charts": charts}, ""),
        phases={
            name: read_settings(RotationSettings, found, name)
            if "rotate" in found
            else read_settings(PhaseSettings, found, name)
            for name, found in phase_settings.items()
        },
        evaluation=read_settings(EvaluationSettings, evaluation, "evaluation"),
        ood_data=ood_data,
        minutes=minutes,
    )
    validate(experiment)
    return experiment


def _half(stage: Tree, data: TableSettings) -> Tree:
    """Replace the dimension ``half`` by half of the columns, at least 1."""
    half = max(1, data.event_shape[0] // 2)
    return {**stage, "dim": half} if stage.get("dim") == "half" else stage


def _take_minutes(training: Tree, typed: Mapping[str, Any]) -> tuple[Tree, float | None]:
    """Take the time budget out of the settings of all trainings; refuse steps together with it."""
    minutes = training.get("minutes")
    rest = {name: value for name, value in training.items() if name != "minutes"}
    if minutes is None:
        return rest, None
    budget = read_settings(TimeBudget, {"minutes": minutes}, "training")
    for name in flatten(typed):
        if name.endswith((".probes", "training.steps")):
            raise UserError(
                f"training.minutes: expected no steps with it, got {name}: a time budget sets the "
                "steps of all phases. Omit either."
            )
    return rest, budget.minutes


def _check_names(given: Tree, phases: Collection[str]) -> None:
    if unknown := [str(name) for name in given if name not in Choices.model_fields]:
        known = [*Choices.model_fields, *SINGLE, "stage_<n>", *phases]
        hint = did_you_mean(unknown[0], known)
        raise UserError(
            f"{', '.join(unknown)}: expected one of {', '.join(dict.fromkeys(known))}.{hint} "
            "Change it in conf/, or with --params=<name>=<value>."
        )


def _user_groups(given: Tree, method: Tree) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Take the settings of stages and of phases out of the user's, by their names.

    A group ``stage_<n>`` may hold both: settings of the stage, and of the phase of the same name.
    """
    stages: dict[str, Tree] = {}
    phases: dict[str, Tree] = {}
    names = [name for name in given if name in method["phases"] or name.startswith("stage_")]
    for name in names:
        group = given.pop(name)
        check_group(name, group)
        own = {}
        if name.startswith("stage_"):
            is_phase = name in method["phases"] or name not in method
            own = {key: group[key] for key in group if is_phase and key in PHASE_FIELDS}
            rest = {key: group[key] for key in group if key not in own}
            if rest or not own or name not in method:
                stages[name] = rest
            _refuse_phase_settings(name, rest, method)
            group = own
        if group or not name.startswith("stage_"):
            phases[name] = group
    return stages, phases


PHASE_FIELDS = {*PhaseSettings.model_fields, *RotationSettings.model_fields}


def _refuse_phase_settings(name: str, group: Tree, method: Tree) -> None:
    for key in [key for key in group if key in PHASE_FIELDS]:
        raise UserError(
            f"{name}.{key}: not a setting of a stage. Set it in a phase that trains the stage: "
            f"{', '.join(f'{phase}.{key}' for phase in method['phases'])}."
        )


def _stages(
    dataset: Tree, method: Tree, given: dict[str, Tree], defaults: Tree
) -> tuple[dict[str, Tree], list[Tree]]:
    """Merge the settings of each stage: the flow's defaults, method, dataset, user.

    Returns:
        The stages by name, and for each stage the defaults of a phase that starts at it.
    """
    names = list(dict.fromkeys(
        name for name in (*method, *given) if name.startswith("stage_")
    ))  # fmt: skip
    ordered = [f"stage_{n}" for n in range(1, len(names) + 1)]
    if set(names) != set(ordered):
        raise UserError(
            f"stage_<n>: expected numbers from 1 without a gap, got {', '.join(sorted(names))}. "
            "Change them on the command line or in conf/."
        )
    stages, phase_defaults = {}, []
    for name in ordered:
        own = dict(dataset.get(name, {})) if name in method else {}
        own_phase = own.pop("phase", {})
        stage = merge(method.get(name, {}), _fitting_flow(own, method.get(name, {})), name)
        user = given.get(name, {})
        if _type(user) not in (None, _type(stage)):  # the tables' settings are of another flow
            stage["flow"] = {}
        stage = merge(stage, user, name)
        check_group(f"{name}.flow", stage.get("flow", {}))
        found = _flow_defaults(
            defaults, stage.get("flow", {}).get("type", "realnvp"), f"{name}.flow"
        )
        if "then" in stage:
            stage["then"] = [
                _flow_defaults(defaults, flow.get("type"), f"{name}.then")["flow"] | flow
                for flow in stage["then"]
            ]
        base = {"flow": found["flow"], "default_dim": "dim" not in user}
        stages[name] = merge(base, stage, name)
        phase_defaults.append(merge(found["phase"], own_phase))
    return stages, phase_defaults


def _fitting_flow(own: Tree, stage: Tree) -> Tree:
    """Adapt a dataset's flow of points to the method's: it replaces a flow of images only."""
    flow = FLOWS.get(str(_type(stage)))
    if _type(own) != _type(stage) and flow is not None and 1 in flow.axes:
        return {name: value for name, value in own.items() if name != "flow"}
    if "flow" in own and _type(stage) in VECTOR_FLOWS:
        return {**own, "flow": {**own["flow"], "type": VECTOR_FLOWS[_type(stage)]}}
    return own


def _type(stage: Tree) -> Any:
    flow = stage.get("flow")
    return flow.get("type") if isinstance(flow, Mapping) else None


def _flow_defaults(defaults: Tree, name: Any, where: str) -> Tree:
    """Return the defaults of a flow; a registered flow without an entry takes those of its kind."""
    if name in FLOWS and name not in defaults:
        images = 3 in FLOWS[name].axes
        return {"flow": {"type": name}, "phase": defaults["glow" if images else "realnvp"]["phase"]}
    return entry(defaults, name, f"{where}.type")


def _phases(
    method: Tree,
    given: dict[str, Tree],
    training: Tree,
    stages: int,
    defaults: Sequence[Tree],
    training_defaults: Tree,
) -> dict[str, Tree]:
    """Merge the settings of each phase: its first stage's defaults, method, user.

    The method's phases come first, then those that the user adds by the name of an added stage, and
    one for each stage that is still untrained.
    """
    entries: dict[str, Tree] = method["phases"]
    everything = list(range(1, stages + 1))
    phases: dict[str, Tree] = {}
    ordered = list(entries)
    named = [name for name in given if name not in entries]
    while True:
        trained = {number for phase in phases.values() if "rotate" not in phase
                   for number in phase["stages"]}  # fmt: skip
        untrained = [number for number in everything if number not in trained]
        if ordered:
            name = ordered.pop(0)
        elif named:
            name = named.pop(0)
        elif untrained:
            name = _unique(f"stage_{untrained[0]}", phases)
        else:
            break
        hard = merge(entries.get(name, {}), given.get(name, {}), name)
        if "rotate" not in hard:
            usual = "all" if name in entries else _stage_of(name, untrained)
            if "stages" not in hard and usual is None:
                raise UserError(
                    f"{name}: expected one of the phases {', '.join(phases)}, which train every "
                    f"stage. Change one of them, or set {name}.stages to add a phase."
                )
            numbers = _stage_numbers(hard.get("stages", usual), everything, name)
            default = merge({"training": training_defaults}, defaults[numbers[0] - 1])
            own = merge({"training": training}, given.get(name, {}), name)
            hard = merge_phase([default, entries.get(name, {}), own], name) | {"stages": numbers}
        phases[name] = hard
    return phases


def _stage_of(name: str, untrained: Sequence[int]) -> int | None:
    """Return the stage that an added phase trains by default: its own, or the first untrained."""
    number = name.removeprefix("stage_")
    if number.isdigit() and int(number) in untrained:
        return int(number)
    return untrained[0] if untrained else None


def _unique(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}_{n}" for n in range(2, len(taken) + 3))
    return next(each for each in (name, *numbered) if each not in taken)


def _stage_numbers(stages: Any, everything: list[int], name: str) -> list[int]:
    numbers = everything if stages == "all" else [stages] if isinstance(stages, int) else stages
    fits = isinstance(numbers, list) and numbers and all(type(n) is int for n in numbers)
    if not fits or numbers != list(range(numbers[0], numbers[-1] + 1)) or not (
        1 <= numbers[0] <= numbers[-1] <= everything[-1]
    ):  # fmt: skip
        raise UserError(
            f"{name}.stages: expected the number of a stage, a list of consecutive numbers such as "
            f"[1, 2], or all, among stages 1 to {everything[-1]}; got {stages}. Change it in "
            f"conf/, or with --params={name}.stages=<number>."
        )
    return numbers


def _ood(datasets: Tree, given: Tree, data: DataSettings) -> ImageSettings | TableSettings | None:
    """Return the source of out-of-distribution images or rows, prepared like the model's data.

    For the model's own dataset these are the images with other labels than ``data.labels``.
    """
    chosen = given.get("ood")
    if chosen is None:
        return None
    if isinstance(data, TableSettings):
        if not Path(str(chosen)).expanduser().exists():
            raise UserError(
                f"ood: expected the path of a table with the columns of the model's, got {chosen}. "
                "Change it with --params=ood=<path>."
            )
        return read_settings(TableSettings, {"path": str(chosen)}, "ood")
    if not isinstance(data, ImageSettings):
        raise UserError(
            f"ood: expected null for points, got {chosen}. Leave it out, or choose a dataset of "
            "images or a table."
        )
    if chosen == given["dataset"]:
        if data.labels is None:
            raise UserError(
                f"ood: expected another dataset than the model's, got {chosen}. Choose another "
                "one, or select the in-distribution labels with data.labels: images with other "
                "labels are then out of distribution."
            )
        return data.model_copy(update={"labels": None, "other_labels": data.labels})
    if chosen in datasets:
        found = {name: value for name, value in datasets[chosen].items()
               if name != "method" and not name.startswith("stage_")}  # fmt: skip
    elif Path(str(chosen)).expanduser().exists():
        found = {"source": "folder", "path": str(chosen)}
    else:
        raise UserError(
            f"ood: expected a dataset ({', '.join(datasets)}), a folder or a zip of images, got "
            f"{chosen}. Change it with --params=ood=<name or path>."
        )
    if found.get("source") in MANIFOLDS:
        raise UserError(f"ood: expected images, got the points {chosen}. Choose images.")
    form = {"size": data.size, "channels": data.channels}
    if found.get("source") != "photos":
        form["margin"] = data.margin
    settings = read_data_settings({**found, **form}, f"datasets.{chosen}")
    assert isinstance(settings, ImageSettings)
    return settings
