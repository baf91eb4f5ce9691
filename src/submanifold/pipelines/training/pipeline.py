"""x -> phase_1.train -> phase_2.encode -> phase_2.train -> ... -> finish -> report."""

from collections.abc import Collection, Sequence

from kedro.pipeline import Node, Pipeline

from submanifold.config.experiment import Source, sources
from submanifold.pipelines import data, evaluation, reporting
from submanifold.pipelines.training.nodes import (
    encode,
    finish_images,
    finish_points,
    rotate,
    train,
)

LAUNCHED = {"device": "params:device", "launch": "params:launch"}


def create_pipeline(
    trained: Sequence[tuple[int, ...]] = ((1,), (2,)),
    synthetic: bool = False,
    rotations: Collection[int] = (),
) -> Pipeline:
    """Build the pipeline of an experiment, from the source to the report.

    See :func:`create_training`.
    """
    histories = {f"phase_{n}": f"phase_{n}.history" for n in range(1, len(trained) + 1)}
    return (
        create_training(trained, synthetic, rotations)
        + evaluation.create_pipeline(histories, noisy_phase(trained, rotations), synthetic)
        + reporting.create_pipeline(histories, synthetic)
    )


def create_training(
    trained: Sequence[tuple[int, ...]],
    synthetic: bool = False,
    rotations: Collection[int] = (),
) -> Pipeline:
    """Build the part from the source to the trained model.

    Args:
        trained: Numbers of the stages that each phase changes. One after the other is Algorithm 2;
            all at once in one phase is a joint method.
        synthetic: Whether the data have a known density.
        rotations: Numbers of the phases that train nothing, but rotate latents.
    """
    numbers = range(1, len(trained) + 1)
    inputs: dict[Source | None, str] = {None: "x"}
    phases = Pipeline([])
    for number, source in zip(numbers, sources(list(trained)), strict=True):
        if source not in inputs:
            phases += encoding(number, source)  # type: ignore[arg-type]
            inputs[source] = f"phase_{number}.u"
        phase = rotation if number in rotations else training
        phases += phase(number, inputs[source])
    last = f"phase_{len(trained)}"
    given = {"model": f"{last}.model", "data": "params:data"}
    scored = {"valid": "x_valid", "folder": f"{last}.folder", "groups": "groups", **LAUNCHED}
    finished = Node(
        finish_points if synthetic else finish_images,
        inputs=given if synthetic else {**given, **scored},
        outputs="hierarchy",
        name="finish",
    )
    return data.create_pipeline(synthetic) + phases + Pipeline([finished])


def training(number: int, source: str) -> Pipeline:
    """Build the training of a phase, on the data or on coordinates u."""
    names = {name: name for name in ("train", "valid", "folder")}
    before = {"before": f"phase_{number - 1}.model"} if number > 1 else {}
    given = ("phase", "model", "seed", "device", "launch")
    parameters = {name: f"params:{name}" for name in given}
    node = Node(
        train,
        inputs={**names, **parameters, **{name: name for name in before}},
        outputs={"model": "model", "history": "history"},
        name="train",
    )
    return Pipeline(
        [node],
        namespace=f"phase_{number}",
        inputs={"train": f"{source}_train", "valid": f"{source}_valid", **before},
        parameters=_parameters(number, "model", "seed", "device", "launch"),
    )


def rotation(number: int, source: str) -> Pipeline:
    """Build a phase that rotates the latents of the stage that was trained last."""
    parameters = {name: f"params:{name}" for name in ("phase", "seed", "device", "launch")}
    node = Node(
        rotate,
        inputs={**{name: name for name in ("train", "before", "folder")}, **parameters},
        outputs={"model": "model", "history": "history"},
        name="rotate",
    )
    return Pipeline(
        [node],
        namespace=f"phase_{number}",
        inputs={"train": f"{source}_train", "before": f"phase_{number - 1}.model"},
        parameters=_parameters(number, "seed", "device", "launch"),
    )


def encoding(number: int, source: Source) -> Pipeline:
    """Build the encoding of a phase's input by the stages before it."""
    names = {name: name for name in ("model", "train", "valid")}
    paths = {"train_path": "u_train_path", "valid_path": "u_valid_path"}
    parameters = {name: f"params:{name}" for name in ("phase", "seed", "device", "launch")}
    node = Node(
        encode,
        inputs={**names, **parameters, **paths},
        outputs={"u_train": "u_train", "u_valid": "u_valid"},
        name="encode",
    )
    outer = {"model": f"phase_{source.phase}.model", "train": "x_train", "valid": "x_valid"}
    return Pipeline(
        [node],
        namespace=f"phase_{number}",
        inputs=outer,
        parameters=_parameters(number, "seed", "device", "launch"),
    )


def _parameters(number: int, *shared: str) -> dict[str, str]:
    """Parameters of a phase's nodes: its own, and what all phases share."""
    names = {f"params:{name}": f"params:{name}" for name in shared}
    return {**names, "params:phase": f"params:phase_{number}"}


def noisy_phase(trained: Sequence[tuple[int, ...]], rotations: Collection[int] = ()) -> str:
    """The last training that begins at the data: its input noise is that of the density."""
    numbered = enumerate(trained, start=1)
    return f"phase_{max(n for n, stages in numbered if stages[0] == 1 and n not in rotations)}"
