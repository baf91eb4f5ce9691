import logging
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from objectives import penalised
from submanifold.common.device import choose_device, choose_precision
from submanifold.common.errors import UserError
from submanifold.data.batches import Batches
from submanifold.flows import FLOWS, Affine, Glow, RealNVP
from submanifold.losses import Objective
from submanifold.losses.objective import Likelihood, Squared, Target
from submanifold.models import Hierarchy, Stage
from submanifold.models import model as model_file
from submanifold.training import trainer
from submanifold.training.trainer import (
    Trainer,
    TrainingSettings,
    fit,
    schedule,
    validate,
)


def settings(**changes):
    return TrainingSettings(
        **{
            "steps": 30,
            "batch_size": 16,
            "learning_rate": 0.01,
            "warmup": 0,
            "cooldown_fraction": 0.0,
            "clip": 10.0,
            "ema": 0.0,
            "validate_every": 10,
            "precision": "float32",
            "activation_checkpointing": False,
            **changes,
        }
    )


def data(n=96, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 4)).astype(np.float32) * np.array([3, 1, 0.5, 0.1], "f")


def small(couplings=2, dim=4):
    torch.manual_seed(0)
    return Hierarchy([Stage(RealNVP(dim, couplings, 8), 2)])


def run(folder, objective=None, hierarchy=None, on_log=None, **changes):
    hierarchy = hierarchy or small()
    history = fit(
        hierarchy,
        objective or penalised("mse", 1.0),
        Batches(data(), 16, seed=1),
        Batches(data(40, seed=5), 16),
        settings(**changes),
        folder,
        "stage_1",
        on_log,
    )
    return hierarchy, history


class Faulty:
    """An objective that is not a number at some of its calls in training, and counts them."""

    def __init__(self, bad, valid_bad=()):
        self.inner, self.bad, self.valid_bad = penalised("mse", 1.0), bad, valid_bad
        self.calls = self.validations = 0

    def __call__(self, hierarchy, h, generator=None):
        terms = self.inner(hierarchy, h)
        if torch.is_grad_enabled():
            self.calls += 1
            bad = self.calls in self.bad
        else:
            self.validations += 1
            bad = self.validations in self.valid_bad
        return {key: value * math.nan for key, value in terms.items()} if bad else terms


def test_training_lowers_the_loss_and_keeps_its_history(tmp_path):
    hierarchy = small()
    before = validate(hierarchy, penalised("mse", 1.0), Batches(data(40, seed=5), 16))
    hierarchy, history = run(tmp_path, hierarchy=hierarchy, steps=35)
    assert [row["step"] for row in history["train"]] == [10, 20, 30, 35]
    assert [row["step"] for row in history["valid"]] == [10, 20, 30, 35]
    assert history["valid"][-1]["loss"] < before["loss"] - 0.1
    assert set(history["train"][0]) == {
        "step", "loss", "likelihood", "reconstruction", "bits_per_dim", "mse",
        "gradient_norm", "rows_per_second",
    }  # fmt: skip
    assert set(history["valid"][0]) == {
        "step", "loss", "likelihood", "reconstruction", "bits_per_dim", "mse",
        "inverse_error", "thickness", "neighbour_correlation",
    }  # fmt: skip
    assert (history["name"], history["steps"], history["steps_trained"]) == ("stage_1", 35, 35)
    assert (history["rollbacks"], hierarchy.training) == (0, False)
    assert history["seconds"] > 0


def test_who_listens_may_end_it_and_nothing_is_lost(tmp_path):
    def stop(step, row):
        heard.append((step, "valid.loss" in row))
        if heard[-1] == (20, True):
            raise TimeoutError

    heard = []
    with pytest.raises(TimeoutError):
        run(tmp_path / "a", on_log=stop)
    assert heard == [(10, False), (10, True), (20, False), (20, True)]
    hierarchy, history = run(tmp_path / "a")
    assert history["steps_trained"] == 10, "the validation that was heard is in the checkpoint"
    whole, _ = run(tmp_path / "b")
    assert all(map(torch.equal, hierarchy.parameters(), whole.parameters()))


def test_it_is_a_function_of_start_seed_and_settings(tmp_path):
    a, _ = run(tmp_path / "a")
    b, _ = run(tmp_path / "b")
    c, _ = run(tmp_path / "c", learning_rate=0.02)
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert not all(map(torch.equal, a.parameters(), c.parameters()))


def test_validation_is_the_mean_over_rows_of_batches_of_any_size():
    hierarchy, objective = small(), penalised("mse", 1.0)
    whole = validate(hierarchy, objective, Batches(data(40), 40))
    parts = validate(hierarchy, objective, Batches(data(40), 16))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_weights_left_are_those_with_the_lowest_validation_loss(tmp_path):
    # so large a learning rate that the last weights are not the best ones
    hierarchy, history = run(tmp_path, steps=60, learning_rate=0.5, validate_every=5)
    losses = {row["step"]: row["loss"] for row in history["valid"]}
    best = min(losses, key=losses.get)
    assert history["best_step"] == best < 60
    assert hierarchy.notes["step"] == best
    left = validate(hierarchy, penalised("mse", 1.0), Batches(data(40, seed=5), 16))
    assert left["loss"] == pytest.approx(losses[best], rel=1e-6)


class Recording:
    """An objective that keeps the weights it is called with in training."""

    def __init__(self):
        self.inner, self.weights = penalised("mse", 1.0), []

    def __call__(self, hierarchy, h, generator=None):
        if torch.is_grad_enabled():
            self.weights.append([p.detach().clone() for p in hierarchy.parameters()])
        return self.inner(hierarchy, h)


def test_what_is_validated_and_kept_is_the_average_of_the_weights(tmp_path):
    objective = Recording()
    hierarchy, history = run(tmp_path, objective, ema=0.9, steps=20)
    # those after step t are those that step t + 1 is called with; the start is counted in
    average = objective.weights[0]
    for step, weights in enumerate(objective.weights[1:11]):
        decay = min(0.9, (1 + step) / (10 + step))
        average = [a * decay + w * (1 - decay) for a, w in zip(average, weights, strict=True)]

    def score(weights):
        for p, weight in zip(hierarchy.parameters(), weights, strict=True):
            p.data = weight
        return validate(hierarchy, objective, Batches(data(40, seed=5), 16))["loss"]

    assert history["valid"][0]["step"] == 10
    assert history["valid"][0]["loss"] == pytest.approx(score(average), rel=1e-6)
    assert history["valid"][0]["loss"] != pytest.approx(score(objective.weights[10]), rel=1e-3)
    stored, _ = run(tmp_path / "ten", objective, ema=0.9, steps=10)
    for kept, expected in zip(stored.parameters(), average, strict=True):
        torch.testing.assert_close(kept.detach(), expected, rtol=0, atol=1e-6)


def test_validation_leaves_the_weights_and_their_average_as_they_were(tmp_path):
    for every in (5, 20):
        run(tmp_path / str(every), ema=0.9, steps=20, validate_every=every)
    often, once = (load_file(tmp_path / str(n) / "last.safetensors") for n in (5, 20))
    assert often.keys() == once.keys()
    assert all(torch.equal(often[name], once[name]) for name in once)
    for name in (name for name in once if name.startswith("weights/")):
        assert not torch.equal(once[name], once[name.replace("weights", "average")])


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e9])
def test_a_gradient_longer_than_the_clip_is_shortened_to_it(clip):
    batch = torch.from_numpy(data(16))
    trainer = Trainer(small(), penalised("mse", 1.0), settings(clip=clip))
    norm = trainer.step(batch)["gradient_norm"].item()
    assert norm > 0.5
    # after a step of Adam from nothing its first moment is a tenth of the gradient
    moments = [trainer.optimizers[0].state[p]["exp_avg"] for p in trainer.weights]
    length = torch.cat([m.flatten() for m in moments]).norm().item()
    assert length == pytest.approx(0.1 * min(norm, clip), rel=1e-3)


def interrupt(folder, at, **changes):
    """Train until the row of a step is logged for the first time."""

    def stop(step, row):
        if step == at and "train.loss" in row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, on_log=stop, **changes)


def torn(content):
    return content[:-8]


def flipped(content):
    """One bit of the weights is another."""
    middle = len(content) - len(content) // 4
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def flipped_in_the_header(content):
    place = content.index(b"best_step") + 13
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE = [torn, flipped, flipped_in_the_header]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_has_training_go_on_from_the_one_before(tmp_path, caplog, damage):
    whole, history = run(tmp_path / "whole")
    interrupt(tmp_path / "hurt", 30)
    path = tmp_path / "hurt" / "last.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "submanifold"):
        again, trained = run(tmp_path / "hurt")
    assert f"{path} is damaged" in caplog.text
    assert trained["steps_trained"] == 20  # from step 10, for that of step 20 was hurt
    assert all(map(torch.equal, again.parameters(), whole.parameters()))
    assert again.notes == whole.notes
    assert trained["train"][-1]["loss"] == history["train"][-1]["loss"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_two_damaged_checkpoints_have_training_start_anew(tmp_path, caplog, damage):
    whole, _ = run(tmp_path / "whole")
    interrupt(tmp_path / "hurt", 30)
    for name in ("last", "earlier"):
        path = tmp_path / "hurt" / f"{name}.safetensors"
        path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "submanifold"):
        again, trained = run(tmp_path / "hurt")
    assert "training starts anew" in caplog.text
    assert trained["steps_trained"] == 30
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_a_training_stopped_before_its_first_validation_goes_on_without_a_word(tmp_path, caplog):
    def stop(step, row):
        raise KeyboardInterrupt

    whole, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", on_log=stop)
    with caplog.at_level(logging.WARNING, "submanifold"):
        again, trained = run(tmp_path / "stopped")
    assert not caplog.text
    assert trained["steps_trained"] == 30
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


def test_a_finished_folder_trains_no_step_and_gives_the_same_weights(tmp_path, monkeypatch, caplog):
    first, history = run(tmp_path)
    rows, hashed = [], []
    checksum = model_file._checksum
    monkeypatch.setattr(
        model_file, "_checksum", lambda *given: hashed.append(1) or checksum(*given)
    )
    caplog.clear()
    objective = Faulty(bad=())
    second, again = run(tmp_path, objective, on_log=lambda step, row: rows.append((step, row)))
    assert objective.calls == again["steps_trained"] == 0
    assert "resuming" not in caplog.text
    assert len(hashed) == 1, "each checkpoint is hashed once"
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert again == {**history, "steps_trained": 0}
    assert [step for step, _ in rows] == [10, 20, 30, 10, 20, 30]
    assert set(rows[0][1]) == {f"train.{key}" for key in history["train"][0] if key != "step"}
    assert rows[-1][1]["valid.loss"] == history["valid"][-1]["loss"]


def test_a_folder_that_trained_further_than_asked_counts_no_negative_steps(tmp_path):
    run(tmp_path)
    assert run(tmp_path, steps=20)[1]["steps_trained"] == 0


def test_more_steps_go_on_from_the_last_checkpoint(tmp_path):
    run(tmp_path, steps=20)
    further, history = run(tmp_path, steps=40)
    assert history["steps_trained"] == 20
    whole, _ = run(tmp_path / "whole", steps=40)
    assert all(map(torch.equal, further.parameters(), whole.parameters()))


def test_training_starts_from_data_dependent_actnorms(tmp_path):
    hierarchy = Hierarchy([Stage(Affine(4), 2)])
    run(tmp_path, hierarchy=hierarchy, steps=1, learning_rate=1e-9)
    actnorm = hierarchy.stages[0].flow.norm
    batch = Batches(data(), 16, seed=1).at(0)
    torch.testing.assert_close(actnorm.shift.detach(), batch.mean(0))
    torch.testing.assert_close(actnorm.log_scale.exp().detach(), 1 / batch.std(0, correction=0))


def test_a_loss_that_is_not_finite_sets_back_and_halves_the_learning_rate(
    tmp_path, caplog, monkeypatch
):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)),
    )
    objective = Faulty(bad={13})
    with caplog.at_level(logging.WARNING, "submanifold"):
        hierarchy, history = run(tmp_path, objective)
    assert "stage_1: not finite at step 20; back to step 10" in caplog.text
    assert "learning rate halved (1 of 3)" in caplog.text
    # ten good steps, ten that came to nothing, and the last twenty at half the rate
    assert rates == [0.01] * 20 + [0.005] * 20
    assert objective.calls == 40
    assert (history["rollbacks"], history["steps_trained"]) == (1, 30)
    assert [row["step"] for row in history["train"]] == [10, 20, 30]
    assert all(math.isfinite(row["loss"]) for row in history["train"] + history["valid"])
    assert all(torch.isfinite(p).all() for p in hierarchy.parameters())


class Exploding:
    """An objective whose loss is finite but far too large at some of its calls in training."""

    def __init__(self, bad):
        self.inner, self.bad, self.calls = penalised("mse", 1.0), bad, 0

    def __call__(self, model, h, generator=None):
        values = self.inner(model, h, generator)
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls in self.bad:
                values["loss"] = values["loss"] + 100
        return values


def test_a_loss_that_stays_far_above_the_starts_sets_back_too(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "submanifold"):
        _, history = run(tmp_path, Exploding(range(20, 31)), steps=40)
    assert re.search(r"stage_1: 10\d, far above the \S+ of the start at step 30", caplog.text)
    # the checkpoint of step 20, whose loss was in doubt, was not kept
    assert "back to step 10" in caplog.text
    assert (history["rollbacks"], history["steps_trained"]) == (1, 40)
    with pytest.raises(UserError, match=r"far above.*muon_lr \(now 0\.02\)"):
        run(tmp_path / "again", Exploding(range(11, 1000)), muon_lr=0.02)


def test_one_batch_of_a_huge_loss_does_not_set_back(tmp_path):
    _, history = run(tmp_path, Exploding({20}))
    assert history["rollbacks"] == 0
    assert [row["loss"] > 100 for row in history["train"]] == [False, True, False]


@pytest.mark.parametrize("validate_every", [1, 4, 7, 15])
def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path, validate_every):
    hierarchy, history = run(tmp_path, Faulty(bad={12}), validate_every=validate_every)
    assert history["rollbacks"] == 1
    assert all(math.isfinite(row["loss"]) for row in history["train"] + history["valid"])
    assert all(torch.isfinite(p).all() for p in hierarchy.parameters())


def test_it_gives_up_after_three_setbacks_and_names_what_to_lower(tmp_path):
    objective = Faulty(bad=range(11, 1000))
    with pytest.raises(UserError, match=r"stage_1: .*not finite at step 20.*3 times") as caught:
        run(tmp_path, objective)
    assert objective.calls == 10 + 4 * 10
    for name in ("training.learning_rate (now 0.01)", "training.clip", "reconstruction.weight"):
        assert name in str(caught.value)


def test_setbacks_survive_a_restart(tmp_path):
    with pytest.raises(UserError):
        run(tmp_path, Faulty(bad=range(11, 1000)))
    objective = Faulty(bad=())
    _, history = run(tmp_path, objective)
    assert (history["rollbacks"], objective.calls) == (3, 20)
    with pytest.raises(UserError, match="3 times"):
        run(tmp_path / "new", Faulty(bad=range(1, 1000)))


def test_a_loss_not_finite_in_the_first_steps_goes_back_to_the_start(tmp_path):
    _, history = run(tmp_path, Faulty(bad={3}))
    assert (history["rollbacks"], history["steps_trained"]) == (1, 30)


def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path):
    # three batches a validation: the first validation fails, then the second
    for number, bad in enumerate(({1}, {4})):
        hierarchy, history = run(tmp_path / str(number), Faulty((), bad), learning_rate=1e-4)
        losses = [row["loss"] for row in history["valid"]]
        assert math.isnan(losses[number])
        finite = [loss for loss in losses if math.isfinite(loss)]
        assert hierarchy.notes["loss"] == min(finite)


@pytest.mark.parametrize(("first", "second"), [(2, 4), (4, 2)])
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, first, second):
    run(tmp_path, hierarchy=small(first))
    with pytest.raises(UserError, match=r"last\.safetensors cannot be resumed.*Delete its folder"):
        run(tmp_path, hierarchy=small(second))
    torch.manual_seed(0)
    wider = Hierarchy([Stage(RealNVP(4, first, 9), 2)])
    with pytest.raises(UserError, match=r"\(8, 4\) stored, \(9, 4\) expected"):
        run(tmp_path, hierarchy=wider)


def test_the_rates_rise_stay_and_fall_in_straight_lines():
    values = [
        schedule(step, settings(steps=100, warmup=10, cooldown_fraction=0.4)) for step in range(100)
    ]
    assert values[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert values[10:60] == [1] * 50
    assert values[60:] == pytest.approx([1 - i / 40 for i in range(40)])
    constant = settings(steps=110, warmup=10)
    assert [schedule(step, constant) for step in (0, 4, 9, 10, 109)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1]
    )
    assert schedule(0, settings(steps=1, cooldown_fraction=1.0)) == 1
    # one that rises for longer than it stays is lower throughout
    both = [
        schedule(step, settings(steps=10, warmup=8, cooldown_fraction=1.0)) for step in range(10)
    ]
    assert max(both) == 0.6
    assert both[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("wanted", ["cuda:99", "gpu", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused_with_those_allowed(wanted):
    with pytest.raises(UserError, match=rf"device: expected auto, cpu, cuda.*got {wanted}"):
        choose_device(wanted)


def test_the_automatic_device_is_one_that_works():
    assert choose_device("cpu") == torch.device("cpu")
    torch.empty(1, device=choose_device("auto"))


@pytest.mark.parametrize(("tiles", "products"), [(True, False), (False, True), (False, False)])
def test_automatic_precision_is_bfloat16_where_that_pays(monkeypatch, tiles, products):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products)
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    fast = tiles or products
    assert choose_precision("auto", single) == (torch.bfloat16 if fast else torch.float32)
    assert choose_precision("auto", double) == torch.float64
    assert choose_precision("float32", single) == torch.float32
    assert choose_precision("bfloat16", single) == torch.bfloat16


def test_bfloat16_trains_nets_in_bfloat16_and_validates_in_float32(tmp_path):
    seen = {True: set(), False: set()}
    hierarchy = small()
    hidden = hierarchy.stages[0].flow.bijections[0].net[1]
    hidden.register_forward_hook(
        lambda _module, _x, out: seen[torch.is_grad_enabled()].add(out.dtype)
    )
    run(tmp_path, hierarchy=hierarchy, precision="bfloat16", steps=10)
    # the data-dependent initialisation runs without gradients too, in float32
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}


def test_recomputing_hidden_layers_changes_nothing_but_the_memory(tmp_path):
    kept, _ = run(tmp_path / "kept", steps=5)
    recomputed, _ = run(tmp_path / "recomputed", steps=5, recompute=True)
    assert all(map(torch.equal, kept.parameters(), recomputed.parameters()))
    assert not any(
        getattr(module, "activation_checkpointing", False) for module in recomputed.modules()
    )


def test_the_terms_of_training_are_logged_with_their_names(tmp_path):
    rows = []
    run(tmp_path, on_log=lambda step, row: rows.append((step, row)), steps=10)
    assert [step for step, _ in rows] == [10, 10]
    assert all(key.startswith("train.") for key in rows[0][1])
    assert all(key.startswith("valid.") for key in rows[1][1])
    assert trainer.LOG_EVERY == 10


class Unstable(RealNVP):
    """A flow whose inverse is off."""

    def inverse(self, z):
        return super().inverse(z) + 0.1


def test_an_inverse_that_is_off_is_said_once_and_kept_in_the_history(tmp_path, caplog):
    hierarchy = Hierarchy([Stage(Unstable(4, 2, 8), 2)])
    with caplog.at_level(logging.WARNING, "submanifold"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(FLOWS, "unstable", Unstable)
        _, history = run(tmp_path, hierarchy=hierarchy)
    assert caplog.text.count("stage_1: at step 10 the inverse misses its input by 0.") == 1
    assert "training.learning_rate" in history["warnings"]["inverse"]
    assert all(row["inverse_error"] > 0.01 for row in history["valid"])


def curve(n, noise, seed):
    rng = np.random.default_rng(seed)
    t = rng.standard_normal(n)
    x = np.stack([t, 0.3 * np.sin(2 * t)], 1) + noise * rng.standard_normal((n, 2))
    return x.astype(np.float32)


@pytest.mark.parametrize(("noise", "warned"), [(0.0, True), (0.05, False)])
def test_data_without_noise_end_in_a_warning_of_manifold_overfitting(
    tmp_path, caplog, noise, warned
):
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, "submanifold"):
        history = fit(
            Hierarchy([Stage(RealNVP(2, 6, 32), 1)]),
            penalised("mse", 10.0),
            Batches(curve(4000, noise, 0), 256),
            Batches(curve(1000, noise, 1), 256),
            settings(steps=400, learning_rate=0.005, clip=1.0, ema=0.9, validate_every=100),
            tmp_path,
            "stage_1",
        )
    assert ("overfitting" in history["warnings"]) == warned
    assert caplog.text.count("stage_1: manifold overfitting at step") == warned
    if warned:
        assert "data.noise" in history["warnings"]["overfitting"]
        losses = [row["bits_per_dim"] for row in history["valid"]]
        assert losses[-1] < -1
    else:
        assert all(abs(row["neighbour_correlation"]) < 0.5 for row in history["valid"])


def test_bytes_get_their_noise_from_dequantisation_and_are_not_suspected(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)
    row = trainer.diagnose(Hierarchy([Stage(Glow((3, 4, 4), 1, 1, 4), 5)]), Batches(images, 16))
    assert set(row) == {"inverse_error"}
    assert row["inverse_error"] < 1e-5


def test_lambda_that_is_found_is_kept_and_reaches_the_wanted_error(tmp_path):
    """Eq. 3's constraint, by dual ascent; killed it goes on with the same lambda."""
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((400, 4)) * [2.0, 1.5, 0.6, 0.5]).astype(np.float32)
    wanted = 0.18

    def run(folder, on_log=None):
        torch.manual_seed(0)
        model = Hierarchy([Stage(RealNVP(4, 4, mixing=True), 2)])
        terms = {
            "likelihood": Likelihood(),
            "reconstruction": Squared(weight=0.01, target=Target(mse=wanted)),
        }
        batches = Batches(data, 50, seed=1), Batches(data, 400, seed=2)
        how = settings(steps=300, validate_every=50, cooldown_fraction=0.3, learning_rate=0.01)
        return model, fit(model, Objective(terms), *batches, how, folder, on_log=on_log)

    model, history = run(tmp_path / "whole")
    weights = [row["reconstruction_weight"] for row in history["train"]]
    assert weights[0] < weights[-1]
    assert history["valid"][-1]["mse"] < 1.3 * wanted

    def kill(step, row):
        if step == 160:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", kill)
    again, resumed = run(tmp_path / "killed")
    assert [row["reconstruction_weight"] for row in resumed["train"]] == weights
    assert all(map(torch.equal, again.parameters(), model.parameters()))


def with_target(mse, weight=10.0):
    penalty = Squared(weight=weight, target=Target(mse=mse))
    return Objective({"likelihood": Likelihood(), "reconstruction": penalty})


def test_a_target_that_no_model_reaches_ends_with_the_lowest_error(tmp_path):
    model = Hierarchy([Stage(Affine(4), 2)])
    how = {"hierarchy": model, "validate_every": 25, "learning_rate": 0.03}
    run(tmp_path / "before", penalised("mse", 10.0), steps=50, **how)
    how["learning_rate"] = 0.003
    _, history = run(tmp_path / "after", with_target(1e-6), steps=100, **how)
    train, valid = history["train"], history["valid"]
    assert history["rollbacks"] == 0
    # the weight raises the loss as a divergence would
    assert train[-1]["loss"] > 2 * train[0]["loss"] + 1
    kept = next(row for row in valid if row["step"] == history["best_step"])
    assert kept["image_mse"] == min(row["image_mse"] for row in valid)
    assert kept["loss"] > min(row["loss"] for row in valid)


def row(likelihood, error, weight=None):
    """A row of a history; with a weight, of dual ascent."""
    part = error * (10.0 if weight is None else weight)
    found = {"loss": likelihood + part, "likelihood": likelihood, "reconstruction": part,
             "image_mse": error}  # fmt: skip
    return found if weight is None else {**found, "reconstruction_weight": weight}


@pytest.mark.parametrize(
    ("start", "later", "diverged"),
    [
        (row(2.0, 0.1, 1.0), row(2.5, 0.05, 1000.0), False),
        (row(2.0, 0.1, 1.0), row(9.0, 0.1, 1.0), True),
        (row(2.0, 0.1, 1000.0), row(9.0, 0.1, 1.0), True),
        (row(2.0, 0.1, 1.0), row(2.0, 0.5, 1000.0), True),
        (row(2.0, 0.1), row(2.0, 0.2), False),
        (row(2.0, 0.1), row(2.0, 0.9), True),
    ],
)
def test_a_raised_weight_is_not_divergence(start, later, diverged):
    message = trainer.fault(later, [start, later])
    assert (message is not None) == diverged
    assert trainer.far_above(later, [start]) == diverged


def test_the_best_validation_is_the_most_likely_of_those_that_reach_the_target():
    from_best = [
        row(3.0, 0.10, 9.0),
        row(4.0, 0.05, 1.0),
        row(2.0, 0.11, 1.0),
        row(1.0, 0.50, 0.1),
        row(0.0, 0.90, 0.1),
        row(math.nan, 0.05, 1.0),
    ]
    rank = Trainer(small(), with_target(0.1), settings()).rank
    objective = with_target(0.1)
    objective.multipliers["reconstruction"] = torch.zeros(())
    constrained = Trainer(small(), objective, settings()).rank
    shuffled = [from_best[i] for i in (3, 0, 5, 2, 4, 1)]
    assert sorted(shuffled, key=constrained) == from_best
    # without multipliers it is the loss alone
    assert min(from_best[:5], key=rank) == from_best[4]


def test_a_factor_on_the_rates_is_a_smaller_rate():
    for step in (0, 3, 20):
        assert schedule(step, settings(lr_scale=0.5)) == schedule(step, settings()) / 2
