"""Write reference pages from the code: ``% generated: <name>`` in a page is replaced by a text.

Each function below that yields lines writes one text.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from sphinx.application import Sphinx

from submanifold.config.resolve import packaged_tables
from submanifold.config.schema import Choices, EvaluationSettings, TimeBudget
from submanifold.data.fields import Counts
from submanifold.data.settings import (
    INSTALLED,
    Draws,
    ImageSettings,
    SyntheticSettings,
    TableSettings,
)
from submanifold.data.sources import SOURCES
from submanifold.data.synthetic import MANIFOLDS
from submanifold.evaluation.metrics import METRICS
from submanifold.flows import FLOWS, FlowSettings
from submanifold.flows.registry import SELECTABLE
from submanifold.losses import Loss
from submanifold.models import StageSettings
from submanifold.training import PhaseSettings, RotationSettings, TrainingSettings

METHODS = Path(__file__).parents[2] / "conf/base/parameters_methods.yml"
CONF = packaged_tables()
STAGES: dict[str, Any] = CONF["stage_defaults"]
MISSING = object()
MARK = re.compile(r"^% generated: (\w+)$", re.MULTILINE)
BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": None,
    "minItems": None,
    "pattern": None,
}


def markdown(text: str) -> str:
    """Convert a docstring's roles, code and line breaks to MyST."""
    text = re.sub(r"(?<!`)``(?!`)", "`", " ".join(text.split()))
    text = re.sub(r":(class|func|data|mod|meth|attr):`(?=\w+`)", r":\1:`.", text)  # in any module
    text = re.sub(r":(class|func|data|mod|meth|attr):`", r"{py:\1}`", text)
    return re.sub(r":(ref|math):`", r"{\1}`", text).replace("\\*", "*")


def summary(thing: Any) -> str:
    """First paragraph of a docstring."""
    return markdown(inspect.cleandoc(thing.__doc__).split("\n\n")[0])


def meanings(thing: type) -> dict[str, str]:
    """Descriptions of the attributes or arguments in the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(thing.__mro__):
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        for section in re.findall(r"^(?:Attributes|Args):\n((?:    .*\n?|\n(?=    ))+)", doc, re.M):
            for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.M):
                found[name] = markdown(re.sub(r"\bNone\b", "`null`", text))
    return found


def code(value: Any) -> str:
    """A value as it is typed."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return f"`{text}`"


def allowed(schema: Mapping[str, Any]) -> str:
    """Type and range of a JSON schema."""
    if options := schema.get("anyOf"):
        return " or ".join(allowed(each) for each in options)
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return ", ".join(code(each) for each in schema["enum"])
    if "type" not in schema:
        return "group of settings"
    name = {"string": "text", "array": "list", "null": "`null`"}.get(schema["type"], schema["type"])
    if "items" in schema:
        item = allowed(schema["items"])
        name = "list of " + re.sub(r"^(integer|number|group)", r"\1s", item)
    limits = [
        f"{sign} {schema[key]}".replace(str(2**32), "2^32")
        for key, sign in BOUNDS.items()
        if sign and key in schema
    ]
    return " ".join([name, *limits[:1]]) + "".join(f" and {each}" for each in limits[1:])


def by_flow(base: Any, values: Mapping[str, Any]) -> str:
    """A default, and the flows that have another one."""
    flows: dict[str, list[str]] = {}
    for flow, value in values.items():
        if value != base:
            flows.setdefault(code(value), []).append(flow)
    if base is MISSING and len(flows) == 1:
        return next(iter(flows))
    texts = [] if base is MISSING else [code(base)]
    texts += [f"{value} for {', '.join(names)}" for value, names in flows.items()]
    return "; ".join(texts)


def entries(
    model: type[BaseModel],
    prefix: str = "",
    base: Mapping[str, Any] | None = None,
    values: Mapping[str, Mapping[str, Any]] | None = None,
    described: type | None = None,
    skip: tuple[str, ...] = (),
    index: bool = True,
) -> Iterator[str]:
    """One ``confval`` for each field.

    Args:
        model: The settings.
        prefix: What a user types before the name.
        base: Defaults in the configuration.
        values: Defaults of stages, by flow.
        described: Class whose docstring describes the fields; by default the model.
        skip: Fields without an entry.
        index: Whether other pages can refer to the entries: names are unique.
    """
    texts, schemas = meanings(described or model), model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        own = MISSING if field.is_required() else field.get_default(call_default_factory=True)
        own = (base or {}).get(name, own)
        default = (
            ""
            if isinstance(own, BaseModel)
            else by_flow(
                own, {flow: each[name] for flow, each in (values or {}).items() if name in each}
            )
        )
        options = {"type": allowed(schemas[name]), "default": default}
        yield _entry(f"{prefix}{name}", options, texts[name], index)


def _entry(name: str, options: Mapping[str, str], text: str, index: bool = True) -> str:
    lines = [
        f":{key}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in options.items()
        if value
    ]
    lines += [] if index else [":no-index:"]
    return "\n".join([f"```{{confval}} {name}", *lines, "", text, "```", ""])


def settings_top() -> Iterator[str]:
    """Settings of the top level."""
    yield from entries(Choices, base=CONF)


def settings_data() -> Iterator[str]:
    """Settings of images, tables and points."""
    yield "### Images\n"
    yield from entries(ImageSettings, "data.", skip=("counts",))
    for name in Counts.model_fields:
        yield _counts(Counts, name, f"Number of {SPLITS[name]} images; `null` uses the split rule.")
    yield "### Tables\n"
    yield from entries(TableSettings, "data.", skip=("counts",), index=False)
    for name in Counts.model_fields:
        text = f"Number of {SPLITS[name]} rows; `null` uses the split rule."
        yield _counts(Counts, name, text, index=False)
    yield "### Points of a known manifold\n"
    yield from entries(SyntheticSettings, "data.", skip=("counts",), index=False)
    for name in Draws.model_fields:
        yield _counts(Draws, name, f"Number of {SPLITS[name]} points.", index=False)


SPLITS = {"train": "training", "valid": "validation", "test": "test"}


def _counts(model: type[BaseModel], name: str, text: str, index: bool = True) -> str:
    schema = allowed(model.model_json_schema()["properties"][name])
    options = {"type": schema, "default": code(model.model_fields[name].default)}
    return _entry(f"data.counts.{name}", options, text, index)


def settings_stage() -> Iterator[str]:
    """Settings of a stage, and of each flow."""
    yield from entries(StageSettings, "STAGE.")
    yield _entry("STAGE.flow.type", {"type": ", ".join(map(code, SELECTABLE))}, "The flow.")
    for settings in get_args(get_args(FlowSettings)[0]):
        (name,) = get_args(settings.model_fields["type"].annotation)
        yield f"### Flow `{name}`\n"
        yield f"{{py:class}}`~submanifold.flows.{FLOWS[name].__name__}`: {summary(FLOWS[name])}\n"
        base = STAGES.get(name, {}).get("flow", {})
        yield from entries(
            settings, "STAGE.flow.", base, described=FLOWS[name], skip=("type",), index=False
        )


def settings_phase() -> Iterator[str]:
    """Settings of phases."""
    skip = (*Loss.model_fields, "training")
    yield from entries(PhaseSettings, "PHASE.", skip=skip)
    yield from entries(RotationSettings, "PHASE.")


def settings_terms() -> Iterator[str]:
    """Settings of each term of the loss."""
    for term, field in Loss.model_fields.items():
        yield f"### `{term}`\n"
        defaults = {flow: each["phase"].get(term, {}) for flow, each in STAGES.items()}
        kind = field.annotation
        yield f"{summary(kind)}\n"
        yield from entries(kind, f"PHASE.{term}.", values=defaults)


def settings_training() -> Iterator[str]:
    """Settings of trainings."""
    yield from entries(TimeBudget, "training.", {"minutes": None}, {})
    defaults = {flow: each["phase"]["training"] for flow, each in STAGES.items()}
    yield from entries(TrainingSettings, "training.", None, defaults)


def settings_evaluation() -> Iterator[str]:
    """Settings of the evaluation."""
    yield from entries(EvaluationSettings, "evaluation.", CONF["evaluation"])


def methods() -> Iterator[str]:
    """The table of methods, with the comments of the configuration."""
    block = re.search(r"^methods:\n(.*?)(?=^\S|\Z)", METHODS.read_text(), re.M | re.S)
    assert block is not None
    groups: list[tuple[list[str], list[str]]] = []
    for line in block[1].splitlines():
        if comment := re.match(r"  # (.*)", line):
            if not groups or groups[-1][1]:
                groups.append(([], []))
            groups[-1][0].append(comment[1])
        elif key := re.match(r"  ([\w-]+):", line):
            groups[-1][1].append(key[1])
    for comments, names in groups:
        yield " ".join(comments).replace("docs/theory.md", "[theory](../theory.md)") + "\n"
        yield "{.wide}"
        yield "| Method | Stages | Phases |\n| --- | --- | --- |"
        for name in names:
            yield f"| `{name}` | {_method(CONF['methods'][name])} |"
        yield ""


def _method(method: Any) -> str:
    stages = [value for key, value in method.items() if key.startswith("stage_")]
    texts = [_stage(each) for each in stages]
    if charts := method.get("charts"):
        texts.append(f"{charts} charts")
    phases = [f"`{name}`: {_phase(each, len(stages))}" for name, each in method["phases"].items()]
    return f"{'; '.join(texts)} | {'; '.join(phases)}"


def _stage(stage: Mapping[str, Any]) -> str:
    dim = "all coordinates" if stage["dim"] is None else f"d = {stage['dim']}"
    return f"{stage['flow']['type']}, {dim}"


def _phase(phase: Mapping[str, Any], count: int) -> str:
    if "rotate" in phase:
        return f"rotation of stage {phase['rotate']}"
    penalty = phase["reconstruction"]["penalty"]
    weights = {
        name: phase.get(name, {}).get("weight", 1.0 if name == "likelihood" else 0.0)
        for name in Loss.model_fields
        if name != "reconstruction"
    }
    terms = [name.replace("_", " ") for name, weight in weights.items() if weight]
    terms += [{"mse": "squared error", "huber": "Huber"}[penalty]] if penalty != "none" else []
    noise = ", with input noise" if phase.get("input_noise") else ""
    stages = phase.get("stages", "all")
    where = f" of stage {stages}" if count > 1 and stages != "all" else ""
    return " + ".join(terms) + where + noise


def metrics() -> Iterator[str]:
    """The table of metrics."""
    yield "| Name | Column heading | Unit | Better |\n| --- | --- | --- | --- |"
    for metric in METRICS.values():
        yield f"| `{metric.name}` | {metric.label} | {metric.unit} | {metric.better or ''} |"


def datasets() -> Iterator[str]:
    """The lists of image datasets, tables and known manifolds."""
    yield "## Images\n"
    yield "| `dataset` | `data.path` | Labels | Official test split | Default method |"
    yield "| --- | --- | --- | --- | --- |"
    chosen = {name: each for name, each in CONF["datasets"].items() if each["source"] in SOURCES}
    for name, entry in chosen.items():
        kind = SOURCES[entry["source"]]
        need = "" if kind.path_required else "optional: "
        cells = [
            f"{need}{kind.path}" if kind.path else "none",
            "yes" if kind.labels else "",
            "yes" if kind.official_split else "",
            f"`{entry['method']}`",
        ]
        yield f"| `{name}` | {' | '.join(cells)} |"
    yield "\n## Tables\n"
    yield "| `dataset` | `data.path` | Rows | Default method |\n| --- | --- | --- | --- |"
    tables = {
        name: each
        for name, each in CONF["datasets"].items()
        if each["source"] in ("table", *INSTALLED)
    }
    for name, entry in tables.items():
        rows = INSTALLED.get(entry["source"], "your own: [tables](../how-to/tables.md)")
        path = "none" if entry["source"] in INSTALLED else "a file, a folder or a list of files"
        yield f"| `{name}` | {path} | {rows} | `{entry['method']}` |"
    yield "\n## Points of known manifolds\n"
    yield "| `dataset` | Points | Noise |\n| --- | --- | --- |"
    for name in (name for name in CONF["datasets"] if name not in {**chosen, **tables}):
        entry = CONF["datasets"][name]
        points = summary(MANIFOLDS[entry["source"]])
        yield f"| `{name}` | {points} | {entry.get('noise', 0)} |"


GENERATED = {
    each.__name__: "\n".join(each())  # before autodoc changes annotations of pydantic's classes
    for each in (
        settings_top,
        settings_data,
        settings_stage,
        settings_phase,
        settings_terms,
        settings_training,
        settings_evaluation,
        methods,
        metrics,
        datasets,
    )
}


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the marks of a page."""
    source[0] = MARK.sub(lambda mark: GENERATED[mark[1]], source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the replacement; pages with marks are read again in each build."""
    root = Path(app.srcdir)
    pages = [page for folder in ("reference", "concepts") for page in (root / folder).glob("*.md")]
    marked = [
        str(page.relative_to(root).with_suffix(""))
        for page in pages
        if MARK.search(page.read_text())
    ]
    app.connect("source-read", fill)
    app.connect("env-get-outdated", lambda *_: marked)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
