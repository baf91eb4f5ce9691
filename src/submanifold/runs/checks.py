"""Before a run: whether its experiment and its inputs allow it, and what it has to compute."""

import os
from typing import TYPE_CHECKING

from kedro.framework.project import pipelines
from kedro.io import CatalogProtocol, MemoryDataset
from kedro.pipeline import Pipeline

from submanifold.common.errors import UserError, error_prefix, import_extra, unexpected

if TYPE_CHECKING:
    from submanifold.config.schema import Experiment


def is_kept(name: str, catalog: CatalogProtocol) -> bool:
    """Whether an output has an entry in the catalog, rather than being in memory only."""
    return name in catalog and not isinstance(catalog.get(name), MemoryDataset)


def select_missing(pipeline: Pipeline, catalog: CatalogProtocol) -> Pipeline:
    """Select the nodes with files to compute, and those whose outputs in memory are needed.

    Needed are inputs of selected nodes and outputs of the pipeline. Kedro's own selection leaves
    out a node whose only outputs are in memory, unless another one needs them.
    """
    selected, needed = list[str](), pipeline.outputs()
    for node in reversed(pipeline.nodes):
        computed = [name for name in node.outputs if name in needed or is_kept(name, catalog)]
        if not node.outputs or not all(map(catalog.exists, computed)):
            selected.append(node.name)
            needed.update(node.inputs)
    return pipeline.filter(node_names=selected) if selected else Pipeline([])


def check_inputs(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Raise a UserError with a command if outputs of other nodes are missing."""
    makers = dict[str, tuple[str, str]]()
    for name in sorted(pipelines):  # first __default__
        for node in pipelines[name].nodes:
            for output in node.outputs:
                makers.setdefault(output, (name, node.name))
    missing = sorted(name for name in pipeline.inputs() & makers.keys() if not catalog.exists(name))
    if missing:
        names, nodes = ({makers[name][part] for name in missing} for part in (0, 1))
        option = "".join(f" --pipeline={name}" for name in names - {"__default__"})
        command = f"submanifold run{option} --to-nodes={','.join(sorted(nodes))}"
        computed = f"{', '.join(missing)}: not computed for the present code and settings"
        raise UserError(f"{computed}. Compute with the same parameters: {command}")


def check_experiment(experiment: "Experiment", names: list[str]) -> None:
    """Raise a UserError if pipelines cannot run an experiment, for a reason that is known early."""
    from submanifold.common.device import choose_device

    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if experiment.is_conditional and ranks > 1:
        expected = "one process with data.condition"
        raise unexpected("torchrun", expected, ranks, "Use submanifold run")
    if experiment.data.kind == "synthetic" and "ood" in names:
        got, fix = f"dataset={experiment.dataset}", "Choose another with --params=dataset=<name>"
        raise unexpected("--pipeline=ood", "images or a table", got, fix)
    if experiment.ood is None and "ood" in names:
        expected = "a dataset, or a folder or zip of images; for a table, another table"
        raise unexpected("ood", expected, None, "Change it with --params=ood=<name or path>")
    choose_device(experiment.device)
    if weights := experiment.evaluation.inception_weights:
        from submanifold.evaluation.features import check_weights

        import_extra("torch_fidelity", "fid")
        if weights != "download":
            with error_prefix("evaluation"):
                check_weights(weights)
