"""Entries of tables, and how settings are merged over each other."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from submanifold.common.errors import UserError, did_you_mean
from submanifold.losses.terms import term_types

Tree = dict[str, Any]

RENAMED = {
    "matrix_rate": "muon_lr",
    "rates": "lr_scale",
    "decay": "cooldown_fraction",
    "recompute": "activation_checkpointing",
    "spread": "random_dim",
    "excess": "non_orthogonality",
    "parts": "grad_accumulation_steps",
    "outliers": "ood",
    "penalty_weight": "reconstruction.weight",
    "penalty_space": "reconstruction.space",
    "likelihood_weight": "likelihood.weight",
    "likelihood_unit": "likelihood.unit",
    "off_manifold_penalty": "off_manifold.weight",
}
"""Settings of earlier versions, and their names since."""


_ADD = "add an entry in conf/local/parameters.yml"
_REGISTER = {"type": "register a flow in flows/registry.py (see CONTRIBUTING.md)"}


def refuse_renamed(tree: Mapping[str, Any], where: str = "") -> None:
    """Refuse a setting under its earlier name.

    Raises:
        UserError: With the new name.
    """
    for name, value in tree.items():
        path = f"{where}.{name}".removeprefix(".")
        if name in RENAMED:
            new = f"{where}.{RENAMED[name]}".removeprefix(".")
            raise UserError(f"{path}: renamed to {new}. Change it where it is set.")
        if isinstance(value, Mapping):
            refuse_renamed(value, path)


def entry(table: Mapping[str, Any], name: Any, what: str) -> Tree:
    """Return a copy of a table's entry, under the name to which an alias refers.

    Raises:
        UserError: There is no such entry.
    """
    if name not in list(table):
        hint = did_you_mean(str(name), table)
        raise UserError(
            f"{what}: expected one of {', '.join(table)}, got {name}.{hint} Change it with "
            f"--params={what}=<name>, or {_REGISTER.get(what.rpartition('.')[2], _ADD)}."
        )
    if isinstance(table[name], str):
        return entry(table, table[name], what)
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
    numbered: Mapping[str, str],
) -> dict[str, Tree]:
    """Drop from phases what files set of their training and ``training`` on the command line sets.

    Args:
        phases: The user's settings of phases, from files and the command line.
        training: The user's settings of all trainings.
        typed: The settings of the command line alone.
        numbered: The names of the method's phases by ``phase_<n>``.
    """
    newer = {key for key in typed.get("training", {}) if key in training}
    kept = {}
    for name, phase in phases.items():
        spellings = [name, *(number for number, own in numbered.items() if own == name)]
        own = {key for each in spellings for key in typed.get(each, {}).get("training", {})}
        group = phase.get("training", {})
        check_group(f"{name}.training", group)
        left = {key: value for key, value in group.items() if key not in newer - own}
        kept[name] = {**phase, "training": left} if group else phase
    return kept
