"""Entries of tables, and how settings are merged over each other."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from submanifold.common.errors import UserError, did_you_mean
from submanifold.losses.terms import term_types

Tree = dict[str, Any]

_ADD = "add an entry in conf/local/parameters.yml"
_REGISTER = {"type": "register a flow in flows/registry.py (see CONTRIBUTING.md)"}


def entry(table: Mapping[str, Any], name: Any, what: str) -> Tree:
    """Return a copy of a table's entry.

    Raises:
        UserError: There is no such entry.
    """
    if name not in list(table):
        hint = did_you_mean(str(name), table)
        raise UserError(
            f"{what}: expected one of {', '.join(table)}, got {name}.{hint} Change it with "
            f"--params={what}=<name>, or {_REGISTER.get(what.rpartition('.')[2], _ADD)}."
        )
    found = dict(table[name] or {})
    for group in (found, found.get("phases") or {}):
        check_group(f"{what}={name}: phases", group)
    found["phases"] = {key: {} if value is None else value
                     for key, value in (found.get("phases") or {}).items()}  # fmt: skip
    for key in [key for key in found if key.startswith("stage_")]:
        found[key] = {} if found[key] is None else found[key]
        check_group(f"{what}={name}: {key}", found[key])
    for key, value in found["phases"].items():
        check_group(f"{what}={name}: phases.{key}", value)
    if what == "method":
        return {**found, "name": name}
    del found["phases"]
    return found


def add_rotations(method: Tree) -> dict[str, Tree]:
    """Return the phases of a method with a rotation after each, except that of a flow on the code.

    A phase whose penalty acts on the first stages only is split after them, so that the others are
    trained on ordered coordinates. Penalties of later stages are weighted by the eigenvalues.

    Raises:
        UserError: The method has rotations.
    """
    count = sum(key.startswith("stage_") for key in method)
    parts: list[tuple[str, Tree, Tree]] = []
    for name, phase in method["phases"].items():
        if "rotate" in phase:
            raise UserError(
                f"rotated: expected false, because {name} rotates latents. Leave it out, or choose "
                "another method."
            )
        penalty = dict(phase.get("reconstruction", {}))
        if through := penalty.pop("through", 0):
            inner = {"stages": [*range(through + 1, count + 1)]}
            parts.append(("stage_1", {**phase, "stages": [*range(1, through + 1)]}, penalty))
            parts.append((f"stage_{through + 1}", inner, {"penalty": "none"}))
        else:
            parts.append((name, phase, penalty))
    phases: dict[str, Tree] = {}
    for name, phase, penalty in parts:
        stages = phase.get("stages", "all")
        stages = [1, count] if stages == "all" else [stages] if isinstance(stages, int) else stages
        has_penalty = penalty.get("penalty") != "none"
        space = {"space": "metric"} if stages[0] > 1 and has_penalty else {}
        phases[name] = {**phase, "reconstruction": {**penalty, **space}}
        if stages[0] == 1 or has_penalty:
            number = sum("rotate" in other for other in phases.values()) + 1
            phases[f"rotation_{number}" if number > 1 else "rotation"] = {"rotate": stages[-1]}
    return phases


def manifold_stages(method: Tree, dataset: Tree) -> tuple[list[str], Any]:
    """Return the stages that have the dimension of the manifold, and this dimension.

    These are the last stage of a method that has a dimension, and others with the same one. A
    method with a density on all of space has none.
    """
    dims = {name: {**method[name], **dataset.get(name, {})}.get("dim")
            for name in method if name.startswith("stage_")}  # fmt: skip
    last = [each for each in dims.values() if each is not None][-1:]
    return [name for name, each in dims.items() if [each] == last], last[0] if last else None


def check_group(name: str, value: Any) -> None:
    """Raise :class:`UserError` for a single value where a group of settings is expected."""
    if not isinstance(value, Mapping):
        raise UserError(
            f"{name}: expected a group of settings, got {value}. Set one of them: "
            f"--params={name}.<name>=<value>."
        )


def merge(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> Tree:
    """Merge nested settings; those of ``over`` win."""
    merged = dict(base)
    for key, value in over.items():
        name = f"{where}.{key}".removeprefix(".")
        if isinstance(merged.get(key), Mapping):
            check_group(name, value)
            merged[key] = merge(merged[key], value, name)
        else:
            merged[key] = value
    return merged


def merge_phase(layers: Sequence[Tree], name: str) -> Tree:
    """Merge a phase's defaults, the method's entry and the user's settings, in this order.

    Settings of a term that its final kind does not have, such as Huber's delta, are dropped from
    the defaults and from the layers below the one that selects the kind.
    """
    merged: Tree = {}
    for layer in layers:
        merged = merge(merged, layer, name)
    for term, annotation in term_types().items():
        if term not in merged:
            continue
        for layer in layers:
            check_group(f"{name}.{term}", layer.get(term, {}))
        known, tag = _fields(annotation, merged[term]), _tag(annotation)
        selecting = [n for n, layer in enumerate(layers) if tag in layer.get(term, {})]
        merged[term] = {}
        for n, layer in enumerate(layers):
            own = layer.get(term, {})
            if n < max([1, *selecting]):
                own = {key: value for key, value in own.items() if key in known}
            merged[term] = merge(merged[term], own, f"{name}.{term}")
    return merged


def _tag(annotation: Any) -> str | None:
    """Return the name of the setting that selects a union's member; None if it is no union."""
    union = get_args(annotation)
    return str(union[1].discriminator) if union else None


def _fields(annotation: Any, values: Mapping[str, Any]) -> set[str]:
    """Return the settings of a term, or of the member of a union that its tag selects."""
    tag = _tag(annotation)
    if tag is None:
        return set(annotation.model_fields)
    members = [each for each in get_args(get_args(annotation)[0])
               if values.get(tag) in get_args(each.model_fields[tag].annotation)]  # fmt: skip
    return set(members[0].model_fields) if members else set(values)


def without_overridden(
    phases: Mapping[str, Tree],
    training: Tree,
    typed: Mapping[str, Any],
) -> dict[str, Tree]:
    """Drop from phases what files set of their training and ``training`` on the command line sets.

    Args:
        phases: The user's settings of phases, from files and the command line.
        training: The user's settings of all trainings.
        typed: The settings of the command line alone.
    """
    newer = {key for key in typed.get("training", {}) if key in training}
    kept = {}
    for name, phase in phases.items():
        own = typed.get(name, {}).get("training", {}).keys()
        group = phase.get("training", {})
        check_group(f"{name}.training", group)
        left = {key: value for key, value in group.items() if key not in newer - own}
        kept[name] = {**phase, "training": left} if group else phase
    return kept
