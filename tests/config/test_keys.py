"""Cache keys: the settings and versions on which they depend, and the code of a version."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
from small_methods import read_tables
from syntax_trees import PACKAGE, PACKAGES, RECORD, describe, digest

from submanifold.common.settings import Settings, flatten
from submanifold.config import keys
from submanifold.config.keys import artifact_keys
from submanifold.config.merge import merge
from submanifold.config.resolve import resolve
from submanifold.config.schema import nest
from submanifold.losses import Loss


@pytest.fixture
def tables():
    return read_tables()


MODELS = {"first", "second", "second.u", "model", "run", "report"}
CHANGES = {
    # what is changed: which keys change
    "nothing": ({}, set()),
    "device": ({"device": "cuda"}, set()),
    "path of the data": ({"data": {"path": None}}, set()),
    "evaluation": ({"evaluation": {"samples": 9}}, {"run", "report"}),
    "stage 2": ({"stage_2": {"dim": 9}}, {"second", "model", "run", "report"}),
    "training of phase 2": (
        {"second": {"training": {"clip": 3.0}}},
        {"second", "model", "run", "report"},
    ),
    "phase 1": ({"first": {"reconstruction": {"weight": 0.3}}}, MODELS),
    "stage 1": ({"stage_1": {"dim": 19}}, MODELS),
    "seed": ({"seed": 4}, MODELS),
    "data": ({"data": {"channels": 1}}, {"data", "baselines"} | MODELS),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_key_changes_with_what_its_artifact_depends_on_and_nothing_else(tables, what):
    given, changed = CHANGES[what]
    before = artifact_keys(resolve(tables), Path())
    after = artifact_keys(resolve({**tables, **given}), Path())
    if what.startswith(("stage", "phase", "training")) or what == "data":
        changed = changed | {"schedule"}  # the measured steps
    assert {name for name in before if before[name] != after[name]} == changed


REPORTS = {"report", "ood_report"}
PHASES = {"first", "second", "second.u", "model", "run", "ood_run"} | REPORTS
TRAINED = {"schedule"} | PHASES
MEASURED = {"baselines", "model", "run", "ood_run"} | REPORTS
VERSIONS = {
    "DATA": {"data", "baselines", "ood_data"} | TRAINED,
    "TRAINING": TRAINED,
    "EVALUATION": MEASURED,
    "REPORT": REPORTS,
}
"""The keys that change with a version."""
FIELDS = {
    "dataset": {"data", "baselines"} | TRAINED,
    "method": {"model", "run", "report"},
    "seed": PHASES,
    "ood": {"ood_data", "ood_run", "ood_report"},
    "minutes": TRAINED,
    "calibration": {"model", "run", "ood_run"} | REPORTS,
    "model.charts": TRAINED,
    "data": {"data", "baselines"} | TRAINED,
    "evaluation": {"run", "report"},
    "ood_data": {"ood_data", "ood_run", "ood_report"},
    "name": set(),
    "device": set(),
    "threads": set(),
    "register_as": set(),
    "charts": set(),  # model.charts depends on it
}
"""The keys that change with a setting, or with any setting of a group."""
ELSEWHERE = ("model.stages", "phases")  # the settings of these have a test of their own
OTHERS = {"photos": "mnist", "mnist": "photos", None: "folder"}


def names_of_settings(settings, prefix=""):
    """Names with dots of all settings of an experiment, except the paths of its data."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from names_of_settings(value, f"{prefix}{name}.")
        elif name != "path" and f"{prefix}{name}" not in ELSEWHERE:
            yield prefix + name


def with_another_value(settings, name):
    first, _, rest = name.partition(".")
    value = getattr(settings, first)
    if rest:
        other = with_another_value(value, rest)
    elif value in OTHERS:
        other = OTHERS[value]
    else:
        other = f"{value}-other" if isinstance(value, str) else value + 1
    return settings.model_copy(update={first: other})


def with_ood(tables):
    tables["datasets"]["mnist"] = {"source": "mnist"}
    return resolve({**tables, "ood": "mnist"})


def changed_keys(before, after):
    return {name for name in before if before[name] != after[name]}


def test_every_setting_is_in_the_keys_of_what_depends_on_it(tables):
    experiment = with_ood(tables)
    before = artifact_keys(experiment, Path())
    names = [*names_of_settings(experiment)]
    assert {name.partition(".")[0] for name in names} == {name.partition(".")[0] for name in FIELDS}
    for name in names:
        expected = FIELDS[name] if name in FIELDS else FIELDS[name.partition(".")[0]]
        after = artifact_keys(with_another_value(experiment, name), Path())
        assert changed_keys(before, after) == expected, name


@pytest.mark.parametrize("name", VERSIONS)
def test_a_raised_version_changes_the_keys_of_what_depends_on_it(tables, monkeypatch, name):
    experiment = with_ood(tables)
    before = artifact_keys(experiment, Path())
    monkeypatch.setattr(keys, name, getattr(keys, name) + 1)
    assert changed_keys(before, artifact_keys(experiment, Path())) == VERSIONS[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_version_stands_for_the_recorded_code(name):
    recorded, code = json.loads(RECORD.read_text())[name], describe(name)
    modules = recorded["modules"].items() ^ code["modules"].items()
    changed = ", ".join(sorted({module for module, _ in modules})) or f"{name} in config/keys.py"
    assert recorded == code, (
        f"{changed} changed: raise {name} in config/keys.py if results change, then run "
        "`python tests/config/syntax_trees.py` to record the code"
    )


def test_every_package_has_a_version_or_none():
    """Results do not depend on the code of the others, which select, start and keep runs."""
    others = {"cli.py", "conf", "config", "pipeline_registry.py", "runs", "settings.py"}
    others |= {"sklearn.py", "studies"}
    found = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    named = {name.partition("/")[0] for names in PACKAGES.values() for name in names}
    assert found == named | others


CODE = 'LIMIT = 5\n\n\ndef f(x: int) -> int:\n    """Return it."""\n    return x + LIMIT  # more\n'


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("  # more", "  # or less", True),
        ('"""Return it."""', '"""Return more.\n\n    Always.\n    """', True),
        ('    """Return it."""\n', "", True),
        ("\n\n\n", "\n", True),
        ("LIMIT = 5", "LIMIT = 6", False),
        ("x + LIMIT", "LIMIT + x", False),
    ],
)
def test_comments_and_docstrings_are_no_part_of_the_code(old, new, is_same):
    assert old in CODE
    assert (digest(CODE.replace(old, new)) == digest(CODE)) == is_same


def test_the_key_of_a_run_depends_on_the_network_but_not_on_the_device(tables, monkeypatch):
    def run(weights, device):
        params = {"evaluation": {"samples": 10, "inception_weights": weights}, "device": device}
        return artifact_keys(resolve({**tables, **params}), Path())["run"]

    assert run(None, "auto") == run(None, "cpu") != run("download", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert run(None, "auto") == run(None, "cpu")


def test_every_setting_of_a_stage_and_of_a_phase_is_in_its_key(tables):
    """Another value of any field, now or later, is another artifact."""
    penalty = {"penalty": "huber", "weight": 2.0, "space": "image", "delta": 0.2, "random_dim": 2.5}
    terms = {"likelihood": {"weight": 0.7, "unit": "nats"}, "reconstruction": penalty}
    terms |= {name: {"weight": 0.1} for name in Loss.model_fields if name not in terms}
    full = {**tables, "second": {"input_noise": 0.1, "training": {"lr_scale": 0.5}, **terms}}
    plain = resolve(full)
    before = artifact_keys(plain, Path())
    other = {
        "nats": "bits_per_dim",
        "image": "latent",
        "huber": "mse",
        "decoder": "encoder",
        "float32": "bfloat16",
        "realnvp": "affine",
    }
    changed = 0
    for group in ("stage_2", "second"):
        for name, value in flatten(plain.parameters()[group]).items():
            if name in (
                "stages",
                "flow.type",
                "reconstruction.penalty",
                "flow.hidden",
                "reconstruction.last_stage",
                "input_noise_min",
            ):
                continue
            match value:
                case str():
                    new = other[value]
                case bool():
                    new = not value
                case float():
                    new = value / 2 or 0.4
                case int():
                    new = 1 if name in ("training.warmup", "flow.bins") else value - 1
                case _:
                    is_count = name in ("training.seconds", "training.patience")
                    new = 9 if is_count else [0.0, 0.5]
            after = artifact_keys(resolve(merge(full, nest({f"{group}.{name}": new}))), Path())
            assert before["second"] != after["second"], name
            assert before["first"] == after["first"], name
            changed += 1
    assert changed > 18


def test_methods_share_the_keys_of_the_phases_they_share(tables):
    tables["methods"]["other"] = deepcopy(tables["methods"]["two"])
    tables["methods"]["other"]["phases"]["second"]["reconstruction"] = {"penalty": "huber"}
    mine, other = (
        artifact_keys(resolve({**tables, "method": method}), Path()) for method in ("two", "other")
    )
    same = {name for name in mine if mine[name] == other[name]}
    assert same == {"data", "baselines", "first", "second.u"}
    assert mine["model"].startswith("photos-two-")
    assert other["model"].startswith("photos-other-")
