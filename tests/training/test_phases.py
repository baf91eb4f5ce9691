import copy
import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from resumable import MODEL, phase, smooth_images

from submanifold.common.errors import UserError
from submanifold.data.batches import Batches
from submanifold.data.tables import Preprocessor
from submanifold.losses import encode
from submanifold.losses.terms import Likelihood
from submanifold.models import ModelSettings
from submanifold.training import RotationSettings
from submanifold.training.phases import (
    PhaseRun,
    encode_rows,
    rotate_phase,
    train_phase,
    train_phases,
)

IMAGES = smooth_images(100)
FROZEN = {"learning_rate": 1e-12, "muon_lr": None, "steps": 4, "validate_every": 4}
"""A learning rate that leaves weights unchanged."""


def run(phase, before, folder, data=IMAGES, seed=7):
    before = copy.deepcopy(before)
    where = PhaseRun("phase", seed, torch.device("cpu"), folder)
    return train_phase(phase, MODEL, before, data[20:], data[:20], where)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(module, expected):
    return all(map(torch.equal, module.parameters(), expected))


def assert_unchanged(module, expected):
    for weight, before in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.detach(), before, rtol=0, atol=1e-9)


@torch.no_grad()
def codes(model):
    return model.encode(torch.from_numpy(IMAGES))[0].numpy()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A Glow trained by likelihood alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run(phase(1, weight=0), None, tmp_path_factory.mktemp("phase_1"))[0]
    torch.set_num_threads(threads)


def test_a_phase_starts_with_the_weights_of_the_previous_one(tmp_path, first):
    assert len(first.stages) == 1
    again, history = run(phase(1, **FROZEN), first, tmp_path, seed=8)
    assert_unchanged(again, weights(first))
    assert history["steps_trained"] == 4
    assert [row["step"] for row in history["valid"]] == [0, 4]
    assert (history["stages"], history["terms"]) == ([1], ["likelihood", "reconstruction"])
    terms = phase(1)(encode(first, Batches(IMAGES[20:], 16, 8 + 2**32).at(3)[0]))
    assert history["train"][-1]["loss"] == pytest.approx(terms["loss"].item(), rel=1e-6)


def test_a_phase_that_finds_no_better_weights_keeps_those_it_starts_from(tmp_path, first):
    harmful = phase(1, learning_rate=0.5, muon_lr=None, warmup=0, steps=4, validate_every=2)
    again, history = run(harmful, first, tmp_path)
    assert (history["best_step"], history["steps_trained"]) == (0, 4)
    assert same(again, weights(first))


def test_a_setting_is_the_number_of_rows_of_a_validation(tmp_path, first):
    x = torch.from_numpy(IMAGES)
    error = (x - first.encoder_projection(x)).square().mean((1, 2, 3))
    for rows, count in ((8, 8), (512, 20)):  # there are 20
        settings = phase(1, validation_rows=rows, **FROZEN)
        _, history = run(settings, first, tmp_path / str(rows))
        expected = error[:count].mean().item()
        assert history["valid"][-1]["mse"] == pytest.approx(expected, rel=1e-5)


def test_few_images_limit_the_dimension_with_a_warning(tmp_path, caplog):
    few = IMAGES[:35]  # 15 for training
    model, history = run(phase(1, **FROZEN), None, tmp_path / "first", few)
    assert model.dims == [192, 14]
    text = "stage_1.dim: expected at most 14 with 15 training events, got 24; trained with 14"
    assert history["warnings"]["dim"].startswith(text)
    assert text in caplog.text
    _, history = run(phase(1, **FROZEN), model, tmp_path / "second", few)
    assert not history["warnings"]


def test_encoding_rows_leaves_the_mode_of_the_model(first):
    model = copy.deepcopy(first).train()
    model.stages[0].eval()
    modes = [module.training for module in model.modules()]
    encode_rows(model, IMAGES[:9], 7, torch.device("cpu"))
    assert [module.training for module in model.modules()] == modes


def test_only_new_stages_are_initialized_from_data(tmp_path, first):
    both, _ = run(phase(1, 2, **FROZEN), first, tmp_path)
    assert_unchanged(both.stages[0], weights(first))
    norm = both.stages[1].flows[0].bijections[0].norm
    with torch.no_grad():
        u = first.encode(Batches(IMAGES[20:], 16, 7 + 2**32).at(0)[0])[0]
    assert u.mean(0).abs().max() > 0.1
    torch.testing.assert_close(norm.shift.detach(), u.mean(0), rtol=0, atol=1e-5)


def test_only_the_stages_of_a_phase_are_trained(tmp_path, first):
    glow = weights(first)
    two, history = run(phase(2, space="image"), first, tmp_path / "2", codes(first))
    assert len(two.stages) == 2
    assert same(two.stages[0], glow)
    assert all(p.grad is None for p in two.stages[0].parameters())
    assert history["stages"] == [2]
    inner = weights(two.stages[1])
    three, _ = run(phase(1), two, tmp_path / "3")
    assert len(three.stages) == 2
    assert same(three.stages[1], inner)
    assert all(p.grad is None for p in three.stages[1].parameters())
    moved = [not torch.equal(p, q) for p, q in zip(three.stages[0].parameters(), glow, strict=True)]
    assert all(moved)
    assert [each["stages"] for each in three.notes["phases"]] == [[1], [2], [1]]
    for model in (two, three):  # for its next user nothing is frozen or in training mode
        assert all(weight.requires_grad for weight in model.parameters())
        assert not any(module.training for module in model.modules())


def test_all_phases_train_on_training_data_and_validate_on_validation_data(tmp_path):
    """Other validation data change the validations of all phases, and nothing else."""
    phases = {
        "density": phase(1, validate_every=24),  # a Jacobian that depends on the events
        "rotation": RotationSettings(rotate=1, probes=64),
        "code": phase(2, **FROZEN),
    }
    models, validations = [], []
    for name, valid in (("same", IMAGES[:20]), ("other", 0.5 * IMAGES[:20])):
        place = 7, torch.device("cpu"), tmp_path / name
        models.append(train_phases(phases, MODEL, IMAGES[20:], valid, *place))
        validations.append([each["bits_per_dim"] for each in models[-1].notes["phases"]])
    states = [[*model.state_dict().values()] for model in models]  # with those of the rotation
    assert all(map(torch.equal, *states))
    assert all(found != other for found, other in zip(*validations, strict=True))


def test_a_phase_is_not_resumed_after_another_first_phase(tmp_path):
    """Its checkpoint has the weights of the first phase that it started from."""

    def train(learning_rate):
        phases = {"first": phase(1, learning_rate=learning_rate), "second": phase(1, **FROZEN)}
        data = IMAGES[20:], IMAGES[:20]
        return train_phases(
            phases, MODEL, *data, seed=7, device=torch.device("cpu"), folder=tmp_path
        )

    train(3e-3)
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(UserError, match=r"second/last\.safetensors: .* initial weights"):
        train(1e-2)
    shutil.rmtree(tmp_path / "second")
    trained = train(1e-2)
    assert same(train(1e-2), weights(trained)), "both phases are finished"


def test_phases_after_a_rotation_resume_with_its_result(tmp_path):
    phases = {
        "density": phase(1, **FROZEN),
        "rotation": RotationSettings(rotate=1, probes=64),
        "penalty": phase(1, **FROZEN),
    }
    arguments = MODEL, IMAGES[20:], IMAGES[:20], 7, torch.device("cpu"), tmp_path
    trained = train_phases(phases, *arguments)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert same(train_phases(phases, *arguments), weights(trained))
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_folder_is_locked_while_a_rotation_is_fitted(tmp_path, first):
    model, locks = copy.deepcopy(first), set()
    model.stages[0].flows[0].levels[0].register_forward_hook(
        lambda *_: locks.add((tmp_path / ".lock").exists())
    )
    phase = RotationSettings(rotate=1, probes=64)
    rotate_phase(phase, model, IMAGES, PhaseRun("rotation", 7, torch.device("cpu"), tmp_path))
    assert locks == {True}


def test_threads_train_at_the_same_time_with_their_seeds(tmp_path):
    started, finished = Event(), Event()

    def train(kind, seed, on_log=None):
        folder = tmp_path / kind / str(seed)
        where = PhaseRun("phase", seed, torch.device("cpu"), folder, on_log)
        return train_phase(phase(1, 2, steps=6), MODEL, None, IMAGES[20:], IMAGES[:20], where)[0]

    def wait_for_the_other(name, step, row):
        started.set()
        assert finished.wait(20), "the other training waits"

    alone = [train("alone", seed) for seed in (7, 8)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(train, "together", 7, wait_for_the_other)
        assert started.wait(20)
        together = [train("together", 8)]
        finished.set()
        together.insert(0, first.result())
    for model, expected in zip(together, alone, strict=True):
        for weight, other in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(weight, other)


def test_a_trimmed_likelihood_is_of_the_whole_batch(tmp_path):
    parts = phase(1, grad_accumulation_steps=4)
    trimmed = parts.model_copy(update={"likelihood": Likelihood(trim=0.4)})
    with pytest.raises(UserError, match=r"likelihood\.trim: expected 0 with batches in 4 parts"):
        run(trimmed, None, tmp_path)


@pytest.mark.parametrize("is_redrawn", [False, True])
def test_rows_of_a_table_have_other_noise_in_each_step(tmp_path, is_redrawn):
    """With all rows in each batch and unchanged weights the loss depends on the noise alone."""
    rows = np.random.default_rng(0).integers(0, 4, (60, 3)).astype(float)
    table = Preprocessor.fit(rows)
    events = table.transform(rows, salt=np.arange(60))
    model = ModelSettings(stages=[{"flow": {"type": "realnvp", "couplings": 2}, "dim": 2}])
    how = phase(1, weight=0, **{**FROZEN, "steps": 20, "validate_every": 20, "batch_size": 60})
    where = PhaseRun("phase", 7, torch.device("cpu"), tmp_path)
    table = table if is_redrawn else None
    _, history = train_phase(how, model, None, events, events, where, table)
    first, second = (row["loss"] for row in history["train"])
    assert (abs(first - second) > 1e-4) == is_redrawn
