"""From the tables in conf/ and what the user sets to one experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from submanifold.common.errors import UserError
from submanifold.common.settings import read_settings
from submanifold.config.experiment import Choices, EvaluationSettings, Experiment
from submanifold.config.validate import Tree, refuse, validate
from submanifold.data.settings import DataSettings, ImageSettings, read_data_settings
from submanifold.data.synthetic import MANIFOLDS
from submanifold.flows import FLOWS
from submanifold.losses.objective import TERMS
from submanifold.models import ModelSettings, StageSettings
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings

SMALLEST = 7
ABOUT_IMAGES = ("dequantizations", "inception_weights")
AUTO = "auto"
MOVED = {
    "penalty": "reconstruction.penalty",
    "penalty_weight": "reconstruction.weight",
    "penalty_space": "reconstruction.space",
    "delta": "reconstruction.delta",
    "pixel_range": "reconstruction.pixel_range",
    "likelihood_weight": "likelihood.weight",
    "likelihood_unit": "likelihood.unit",
    "off_manifold_penalty": "off_manifold.weight",
    "input_noise": "input_noise",
    "training": "training",
}
"""Settings of a training, which stages had before there were phases."""
OF_VECTORS = {"soft_glow": "soft_realnvp"}
"""What takes the place of a flow of images that is more than a Glow, for points."""


def resolve(parameters: Mapping[str, Any], typed: Mapping[str, Any] | None = None) -> Experiment:
    """Turn tables and choices into one experiment, all of it checked.

    ``dataset`` and ``method`` choose rows; the method ``auto`` is that of the dataset's row, which
    may also say what a method's stages are on it. Defaults of a stage come from its flow; those of
    a phase from the first stage it trains, the dataset's before the flow's. What ``data``,
    ``training``, ``evaluation``, ``stage_<n>`` and ``phase_<n>`` hold in an environment's file or
    on the command line lies over all of that: ``training`` over the training of every phase,
    ``phase_<n>.training`` over ``training``, and the command line over the file. A stage beyond the
    method's last is added to it, with a phase that trains it.

    A default that does not apply, such as Huber's delta of a squared penalty, is left out; a
    setting that was given and would have no effect is an error.

    Args:
        parameters: The tables, and what the user has set.
        typed: What of that was set on the command line.

    Raises:
        UserError: A name is unknown, or a value cannot work.
    """
    # Kedro leaves these out of every other configuration, where they serve YAML's anchors
    given = {name: value for name, value in parameters.items() if not name.startswith("_")}
    tables = {name: given.pop(name) for name in ("datasets", "methods")}
    defaults = {name: given.pop(f"{name}_defaults") for name in ("stage", "training", "evaluation")}
    for name, group in (
        *tables.items(),
        *((f"{name}_defaults", defaults[name]) for name in defaults),
    ):
        _check_group(name, group)
    for name, table in (*tables.items(), ("stage_defaults", defaults["stage"])):
        for row, value in table.items():
            _check_group(f"{name}.{row}", {} if value is None else value)
    groups = {name: given.pop(name) for name in list(given)
              if name.startswith(("stage_", "phase_"))}  # fmt: skip
    groups |= {name: given.pop(name, {}) for name in ("data", "training", "evaluation")}
    for name, value in groups.items():
        _check_group(name, value)
    data = _row(tables["datasets"], given.get("dataset"), "dataset")
    if given.get("method") == AUTO:
        given["method"] = data.get("method")
    data.pop("method", None)
    method = _row(tables["methods"], given.get("method"), "method")
    stages, soft = _stages(data, method, groups, defaults["stage"])
    data = {name: value for name, value in data.items() if not name.startswith("stage_")}
    settings = read_data_settings(_merge(data, groups["data"], "data"))
    if isinstance(settings, ImageSettings) and settings.size < SMALLEST:
        raise UserError(
            f"data.size={settings.size} is too small: images are compared by patches of {SMALLEST} "
            f"pixels. Allowed: {SMALLEST} or more. Change it with --params=data.size=32."
        )
    others = _outliers(tables["datasets"], given, settings)
    groups |= _without_overridden(groups, typed or {})
    phases = _phases(method, groups, stages, soft, defaults["training"])
    evaluation = dict(defaults["evaluation"])
    if not isinstance(settings, ImageSettings):
        evaluation = {k: v for k, v in evaluation.items() if k not in ABOUT_IMAGES}
        refuse(groups["evaluation"], "evaluation", dict.fromkeys(ABOUT_IMAGES, "it is of images"))
    evaluation = _merge(evaluation, groups["evaluation"], "evaluation")
    if unknown := [name for name in given if name not in Choices.model_fields]:
        raise UserError(
            f"{', '.join(map(str, unknown))} is not a setting; known: "
            f"{', '.join(Choices.model_fields)}, and what the groups data, stage_<n>, phase_<n>, "
            "training and evaluation hold. Change it in conf/, or with --params=<name>=<value>."
        )
    plain = read_settings(Choices, given, "")
    if plain.register_as is not None and not isinstance(settings, ImageSettings):
        raise UserError(
            f"register_as={plain.register_as}, but only models of images are registered. Leave it "
            "out, or choose a dataset of images."
        )
    charts = plain.charts or method.get("charts", 1)
    each = _read_each(StageSettings, stages)
    experiment = Experiment(
        **plain.model_dump(),
        data=settings,
        model=read_settings(ModelSettings, {"stages": each, "charts": charts}, ""),
        phases=tuple(
            read_settings(RotationSettings if "rotate" in row else PhaseSettings, row, name)
            for name, row in phases.items()
        ),
        evaluation=read_settings(EvaluationSettings, evaluation, "evaluation"),
        ood_data=others,
    )
    validate(experiment, method, groups)
    return experiment


def _outliers(rows: Tree, given: Tree, data: DataSettings) -> ImageSettings | None:
    """Settings of the ood' source: pictures made as those of the model are.

    Of the model's own dataset the other labels are ood, where it is of some labels alone.
    """
    chosen = given.get("ood")
    if chosen is None:
        return None
    if not isinstance(data, ImageSettings):
        raise UserError(
            f"ood={chosen}, but they are looked for among images. Leave it out, or choose a "
            "dataset of images."
        )
    if chosen == given["dataset"]:
        if data.labels is None:
            raise UserError(
                f"ood={chosen} is what the model is of. Choose another dataset, or say with "
                "data.labels which labels are normal: images of its other labels are the ood."
            )
        return data.model_copy(update={"labels": None, "other_labels": data.labels})
    if chosen in rows:
        row = {name: value for name, value in rows[chosen].items()
               if name != "method" and not name.startswith("stage_")}  # fmt: skip
    elif Path(str(chosen)).expanduser().exists():
        row = {"source": "folder", "path": str(chosen)}
    else:
        raise UserError(
            f"ood={chosen} is neither a dataset nor a folder or zip of pictures. Datasets: "
            f"{', '.join(rows)}. Change it with --params=ood=<name or path>."
        )
    if row.get("source") in MANIFOLDS:
        raise UserError(f"ood={chosen} are points, but the model is of images. Choose images.")
    form = {"size": data.size, "channels": data.channels}
    if row.get("source") != "photos":
        form["margin"] = data.margin
    settings = read_data_settings({**row, **form}, f"datasets.{chosen}")
    assert isinstance(settings, ImageSettings)
    return settings


def _read_each(kind: Any, rows: Mapping[str, Tree]) -> tuple[Any, ...]:
    return tuple(read_settings(kind, row, name) for name, row in rows.items())


def _stages(
    data: Tree, method: Tree, groups: Tree, defaults: Tree
) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Lay out the stages: a flow's defaults, the method's row, the dataset's, what is given.

    Returns:
        The stages by name, and for each what phases that begin at it have by default.
    """
    names = [name for name in (*method, *groups) if name.startswith("stage_")]
    names = list(dict.fromkeys(names))
    numbered = [f"stage_{n}" for n in range(1, len(names) + 1)]
    if set(names) != set(numbered):
        raise UserError(
            f"Stages have to be numbered from 1 without a gap, but these are set: "
            f"{', '.join(sorted(names))}. Change stage_<n> on the command line or in conf/."
        )
    stages, soft = {}, {}
    for name in numbered:
        own = dict(data.get(name, {})) if name in method else {}
        if _type(own) != _type(method.get(name, {})) and _acts_on_vectors(method.get(name, {})):
            own.pop("flow", None)  # which is for those that cannot act on points
        elif "flow" in own and _type(method.get(name, {})) in OF_VECTORS:
            own["flow"] = {**own["flow"], "type": OF_VECTORS[_type(method[name])]}
        own_phase = own.pop("phase", {})
        stage, given = _merge(method.get(name, {}), own, name), groups.get(name, {})
        if _type(given) not in (None, _type(stage)):  # the rows' settings are of another flow
            stage["flow"] = {}
        stage = _merge(stage, given, name)
        for old in [each for each in MOVED if each in stage]:
            raise UserError(
                f"{name}.{old} is not a setting of a stage: how it is trained is said by a phase. "
                f"Set phase_<n>.{MOVED[old]} of the phase that trains it."
            )
        _check_group(f"{name}.flow", stage.get("flow", {}))
        row = _row(defaults, stage.get("flow", {}).get("type", "realnvp"), f"{name}.flow.type")
        if "then" in stage:
            each = [_row(defaults, flow.get("type"), f"{name}.then.type")["flow"] | flow
                    for flow in stage["then"]]  # fmt: skip
            stage["then"] = each
        stage = _merge({"flow": row["flow"]}, stage, name)
        stages[name], soft[name] = stage, _merge(row["phase"], own_phase)
    return stages, soft


def _type(stage: Tree) -> Any:
    flow = stage.get("flow")
    return flow.get("type") if isinstance(flow, Mapping) else None


def _acts_on_vectors(stage: Tree) -> bool:
    flow = FLOWS.get(str(_type(stage)))
    return flow is not None and 1 in flow.axes


def _without_overridden(groups: Tree, typed: Mapping[str, Any]) -> dict[str, Tree]:
    """The phases without what a file says of their training and the command line's overrides."""
    left = {}
    for name in [name for name in groups if name.startswith("phase_")]:
        own = typed.get(name, {}).get("training", {})
        newer = {key for key in typed.get("training", {}) if key not in own}
        training = groups[name].get("training", {})
        _check_group(f"{name}.training", training)
        kept = {key: value for key, value in training.items() if key not in newer}
        left[name] = {**groups[name], "training": kept} if training else groups[name]
    return left


def _phases(
    method: Tree, groups: Tree, stages: Tree, soft: Tree, training: Tree
) -> dict[str, Tree]:
    """Lay out the phases: their first stage's defaults, then the method's row, what is given."""
    rows = {name: row for name, row in method.items() if name.startswith("phase_")}
    given = {name: value for name, value in groups.items() if name.startswith("phase_")}
    everything = list(range(1, len(stages) + 1))
    phases: dict[str, Tree] = {}
    while True:
        name = f"phase_{len(phases) + 1}"
        trained = {number for phase in phases.values() if "rotate" not in phase
                   for number in phase["stages"]}  # fmt: skip
        untrained = [n for n in everything if n not in trained and len(phases) >= len(rows)]
        if not (name in rows or name in given or untrained):
            break
        hard = _merge(rows.get(name, {}), given.get(name, {}), name)
        if "rotate" in hard:
            phases[name] = hard
            continue
        usual = "all" if name in rows else untrained[0] if untrained else None
        if "stages" not in hard and usual is None:
            raise UserError(
                f"{name} is set, but the method's phases ({', '.join(phases)}) train every stage. "
                f"Change one of them, or set {name}.stages to add a phase."
            )
        trains = _stage_numbers(hard.get("stages", usual), everything, name)
        default = _merge({"training": training}, soft[f"stage_{trains[0]}"])
        own = _merge({"training": groups["training"]}, given.get(name, {}), name)
        merged = _lay_over([default, rows.get(name, {}), own], name)
        phases[name] = {**merged, "stages": trains}
    if wrong := [name for name in (*rows, *given) if name not in phases]:
        raise UserError(
            f"{', '.join(wrong)}: phases have to be numbered from 1 without a gap; there are "
            f"{', '.join(phases)}. Change phase_<n> on the command line or in conf/."
        )
    trainings = [name for name, phase in phases.items() if "rotate" not in phase]
    overruled = [key for key in groups["training"] if all(
        key in given.get(name, {}).get("training", {}) for name in trainings)]  # fmt: skip
    refuse(groups["training"], "training", dict.fromkeys(overruled, "every phase has its own"))
    return phases


def _stage_numbers(trains: Any, everything: list[int], name: str) -> list[int]:
    numbers = everything if trains == "all" else [trains] if isinstance(trains, int) else trains
    fits = isinstance(numbers, list) and numbers and all(type(n) is int for n in numbers)
    if not fits or numbers != list(range(numbers[0], numbers[-1] + 1)) or not (
        1 <= numbers[0] <= numbers[-1] <= everything[-1]
    ):  # fmt: skip
        raise UserError(
            f"{name}.stages={trains} cannot be used. Allowed: the number of a stage, a list of "
            f"neighbours such as [1, 2], or all; there are stages 1 to {everything[-1]}. Change it "
            "in conf/, or with --params=<phase>.stages=<number>."
        )
    return numbers


def _lay_over(layers: Sequence[Tree], name: str) -> Tree:
    """Merge a phase's defaults, the method's row and what is given, the later over the earlier.

    Settings of a term that its final kind does not have are left out of the defaults, and of what
    lies below the layer that chooses this kind.
    """
    merged: Tree = {}
    for layer in layers:
        merged = _merge(merged, layer, name)
    for term, (annotation, _) in TERMS.items():
        if term not in merged:
            continue
        for layer in layers:
            _check_group(f"{name}.{term}", layer.get(term, {}))
        known, tag = _fields(annotation, merged[term]), _tag(annotation)
        chooses = [n for n, layer in enumerate(layers) if tag in layer.get(term, {})]
        merged[term] = {}
        for n, layer in enumerate(layers):
            own = layer.get(term, {})
            if n < max([1, *chooses]):
                own = {key: value for key, value in own.items() if key in known}
            merged[term] = _merge(merged[term], own, f"{name}.{term}")
    return merged


def _tag(annotation: Any) -> str | None:
    """Name of the setting that chooses a union's member; None if it is no union."""
    union = get_args(annotation)
    return str(union[1].discriminator) if union else None


def _fields(annotation: Any, values: Mapping[str, Any]) -> set[str]:
    """Names of the settings of a term, or of the member of a union that its tag chooses."""
    tag = _tag(annotation)
    if tag is None:
        return set(annotation.model_fields)
    members = [each for each in get_args(get_args(annotation)[0])
               if values.get(tag) in get_args(each.model_fields[tag].annotation)]  # fmt: skip
    return set(members[0].model_fields) if members else set(values)


def _row(table: Mapping[str, Any], name: Any, what: str) -> Tree:
    if name not in list(table):
        raise UserError(
            f"{what}={name} is not known. Known: {', '.join(table)}. Change it with "
            f"--params={what}=<name>, or add a row in conf/local/parameters.yml."
        )
    row = dict(table[name] or {})
    for key in [key for key in row if key.startswith(("stage_", "phase_"))]:
        row[key] = {} if row[key] is None else row[key]
        _check_group(f"{what}={name}: {key}", row[key])
    return row


def _check_group(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise UserError(
            f"{name}={value} cannot be used: {name} is a group of settings. Set one of them: "
            f"--params={name}.<name>=<value>."
        )


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> Tree:
    merged = dict(base)
    for key, value in over.items():
        name = f"{where}.{key}".removeprefix(".")
        if isinstance(merged.get(key), Mapping):
            _check_group(name, value)
            merged[key] = _merge(merged[key], value, name)
        else:
            merged[key] = value
    return merged
