import logging
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import resumable
import torch
from pydantic import ValidationError
from torch.optim.optimizer import register_optimizer_step_pre_hook

from submanifold.common.errors import UserError
from submanifold.data.batches import Batches
from submanifold.evaluation.likelihood import log_prob
from submanifold.evaluation.scores import best_noise_scale
from submanifold.flows import FLOWS, Affine, RealNVP, SoftRealNVP
from submanifold.losses import InputNoise, Loss
from submanifold.models import Hierarchy, NormalComponents, Stage
from submanifold.training import Phase, Trainer, fit, monitor
from submanifold.training.loop import DEFENSIVE_WEIGHT
from submanifold.training.trainer import validate

MSE = Loss(reconstruction={"penalty": "mse", "weight": 1.0})
SETTINGS = {
    "steps": 30,
    "learning_rate": 0.01,
    "muon_lr": None,
    "warmup": 0,
    "cooldown_fraction": 0.0,
    "clip": 10.0,
    "ema": 0.0,
    "validate_every": 10,
    "precision": "float32",
}


def settings(**changes):
    return resumable.settings(**{**SETTINGS, **changes})


def data(n=96, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 4)).astype(np.float32) * np.array([3, 1, 0.5, 0.1], "f")


def small(couplings=2, dim=4, width=8, d=2, seed=0):
    torch.manual_seed(seed)
    return Hierarchy([Stage(RealNVP(dim, couplings, width), d)])


def run(folder, loss=MSE, hierarchy=None, on_log=None, rows=None, seed=1, held_out=None, **changes):
    hierarchy = hierarchy or small()
    train = Batches(data() if rows is None else rows, 16, seed=seed)
    valid = Batches(data(40, seed=5) if held_out is None else held_out, 16)
    how = settings(**changes)
    phase = Phase(hierarchy, loss, how)
    return hierarchy, fit(phase, train, valid, folder, "stage_1", on_log)


def evaluate(hierarchy):
    return validate(Phase(hierarchy, MSE, settings()), Batches(data(40, seed=5), 16))


class Faulty:
    """A loss that is wrong at some of its calls in training."""

    def __init__(self, bad, wrong=lambda loss: loss * math.nan):
        self.bad, self.wrong = bad, wrong
        self.calls, self.weights = 0, []

    def __call__(self, encoding):
        values = MSE(encoding)
        if torch.is_grad_enabled():
            self.calls += 1
            self.weights.append([p.detach().clone() for p in encoding.model.parameters()])
            if self.calls in self.bad:
                values["loss"] = self.wrong(values["loss"])
        return values


def test_training_lowers_the_loss_and_keeps_its_history(tmp_path):
    hierarchy = small()
    before = evaluate(hierarchy)
    hierarchy, history = run(tmp_path, hierarchy=hierarchy, steps=35)
    assert [row["step"] for row in history["train"]] == [10, 20, 30, 35]
    assert [row["step"] for row in history["valid"]] == [10, 20, 30, 35]
    assert history["valid"][-1]["loss"] < before["loss"] - 0.1
    assert set(history["train"][0]) == {
        "step",
        "loss",
        "likelihood",
        "reconstruction",
        "bits_per_dim",
        "mse",
        "gradient_norm",
        "rows_per_second",
    }
    assert set(history["valid"][0]) == {
        "step",
        "loss",
        "likelihood",
        "reconstruction",
        "bits_per_dim",
        "mse",
        "inverse_error",
        "thickness",
        "neighbour_correlation",
    }
    assert (history["name"], history["steps"], history["steps_trained"]) == ("stage_1", 35, 35)
    assert (history["rollbacks"], hierarchy.training) == (0, False)
    assert history["seconds"] > 0


def test_the_weights_of_the_best_validation_are_kept(tmp_path):
    # so large a learning rate that the last weights are not the best ones
    hierarchy, history = run(tmp_path, steps=60, learning_rate=0.5, validate_every=5)
    losses = {row["step"]: row["loss"] for row in history["valid"]}
    best = min(losses, key=losses.get)
    assert history["best_step"] == best < 60
    left = evaluate(hierarchy)
    assert left["loss"] == pytest.approx(losses[best], rel=1e-6)


@pytest.mark.parametrize("extreme", [1e25, math.nan])
def test_validation_events_whose_loss_is_not_finite_are_counted_and_left_out(
    tmp_path, caplog, extreme
):
    rows = data(40, seed=5)
    rows[17, 1] = extreme
    with caplog.at_level(logging.WARNING, "submanifold"):
        _, history = run(tmp_path / "extreme", held_out=rows)
    assert caplog.text.count("loss of 1 validation events is not finite") == 1
    assert {*history["warnings"]} == {"not_finite"}
    _, expected = run(tmp_path / "others", held_out=np.delete(rows, 17, 0))
    assert history["best_step"] == expected["best_step"] == 30
    for row, of_others in zip(history["valid"], expected["valid"], strict=True):
        assert row["not_finite"] == 1
        assert row["loss"] == pytest.approx(of_others["loss"], rel=1e-5)
        assert row["mse"] == pytest.approx(of_others["mse"], rel=1e-5)


def test_the_best_validation_is_at_the_noise_scale_that_scores(tmp_path):
    torch.manual_seed(0)
    model = Hierarchy([Stage(SoftRealNVP(4, couplings=4, hidden=32, mixing=True), 2)])
    how, held_out = settings(ema=0.9), data(60, seed=5)
    phase = Phase(model, Loss(), how, noise=InputNoise(1.0, 0.01))
    history = fit(phase, Batches(data(60), 64), Batches(held_out, 64), tmp_path)
    losses, scored = (
        {row["step"]: row[name] for row in history["valid"]} for name in ("loss", "scored_loss")
    )
    assert history["best_step"] == min(scored, key=scored.get) != min(losses, key=losses.get)
    scale = best_noise_scale(model, held_out)
    model.defensive = NormalComponents.fit(data(60), DEFENSIVE_WEIGHT)
    with torch.no_grad():
        log_probs = log_prob(model, torch.from_numpy(held_out), noise_scale=scale)
    bits = model.to_bits_per_dim(log_probs).mean().item()
    assert bits == pytest.approx(min(scored.values()), rel=1e-5)


def test_one_event_far_away_does_not_decide_which_weights_are_kept(tmp_path):
    held_out, loss = data(60, seed=5), Loss(reconstruction={"penalty": "mse", "weight": 1.0})
    far = held_out.copy()
    far[0] = 1e3
    scored = []
    for number, rows in enumerate((held_out, far)):
        torch.manual_seed(0)
        model = Hierarchy([Stage(SoftRealNVP(4, couplings=4, hidden=32, mixing=True), 2)])
        phase = Phase(model, loss, settings(ema=0.9), noise=InputNoise(1.0, 0.01))
        history = fit(phase, Batches(data(60), 64), Batches(rows, 64), tmp_path / str(number))
        scored.append([row["scored_loss"] for row in history["valid"]])
    (without, with_it), usual = map(np.diff, scored), np.abs(np.diff(scored[0])).max()
    np.testing.assert_allclose(with_it, without, atol=0.25 * usual)


class FaultyValidation:
    """A loss that is not a number in some of the validations."""

    def __init__(self, bad):
        self.bad, self.seen = bad, set()

    def __call__(self, encoding):
        values = MSE(encoding)
        if not torch.is_grad_enabled():
            self.seen.add(sum(weight.sum().item() for weight in encoding.model.parameters()))
            if len(self.seen) in self.bad:
                values["loss"] = values["loss"] * math.nan
        return values


@pytest.mark.parametrize(
    ("bad", "rollbacks", "best"),
    [
        ({1}, 1, 30),  # the weights of a first validation without a finite loss are never kept
        ({2}, 0, 30),  # a single one
        ({3}, 0, 20),
        ({2, 3}, 1, 30),
    ],
)
def test_validations_that_are_not_finite_are_never_the_best(tmp_path, bad, rollbacks, best):
    hierarchy, history = run(tmp_path, FaultyValidation(bad))
    assert (history["rollbacks"], history["best_step"]) == (rollbacks, best)
    losses = {row["step"]: row["loss"] for row in history["valid"]}
    assert evaluate(hierarchy)["loss"] == pytest.approx(losses[best], rel=1e-6)


def test_a_first_validation_that_is_not_a_number_is_replaced():
    trainer, valid = Trainer(Phase(small(), FaultyValidation({1}), settings())), Batches(data(), 96)
    assert math.isnan(trainer.validate(valid)["loss"])
    trainer.step(torch.from_numpy(data()))
    assert math.isfinite(trainer.validate(valid)["loss"])
    assert trainer.state.best_step == 1


def test_a_validation_is_the_mean_over_events_in_batches_of_any_size():
    phase, rows = Phase(small(), MSE, settings()), data(40, seed=5)
    rows[32:] *= 3
    whole = validate(phase, Batches(rows, 40))
    assert validate(phase, Batches(rows, 16)) == pytest.approx(whole, rel=1e-5)


def test_a_rollback_without_an_intact_checkpoint_is_an_error(tmp_path):
    def damage(step, row):
        for path in tmp_path.glob("*.safetensors"):
            path.write_bytes(torn(path.read_bytes()))

    with pytest.raises(UserError, match=r"intact checkpoint .* stage_1 was not finite at step 30"):
        run(tmp_path, Faulty(bad=range(11, 31)), on_log=damage)


def test_averaged_weights_are_validated_and_kept(tmp_path):
    loss = Faulty(())
    hierarchy, history = run(tmp_path, loss, ema=0.9, steps=20)
    # those after step t are those that step t + 1 is called with; the start is counted in
    average = loss.weights[0]
    for step, weights in enumerate(loss.weights[1:11]):
        decay = min(0.9, (1 + step) / (10 + step))
        average = [a * decay + w * (1 - decay) for a, w in zip(average, weights, strict=True)]

    def score(weights):
        for p, weight in zip(hierarchy.parameters(), weights, strict=True):
            p.data = weight
        return evaluate(hierarchy)["loss"]

    assert history["valid"][0]["step"] == 10
    assert history["valid"][0]["loss"] == pytest.approx(score(average), rel=1e-6)
    assert history["valid"][0]["loss"] != pytest.approx(score(loss.weights[10]), rel=1e-3)
    stored, _ = run(tmp_path / "ten", loss, ema=0.9, steps=10)
    for kept, expected in zip(stored.parameters(), average, strict=True):
        torch.testing.assert_close(kept.detach(), expected, rtol=0, atol=1e-6)


def test_the_average_begins_with_the_initialized_weights(tmp_path):
    model = Hierarchy([Stage(Affine(4), 2)])
    run(tmp_path, hierarchy=model, rows=data(16) + 5, steps=1, learning_rate=1e-12, ema=0.99)
    mean = torch.from_numpy(data(16) + 5).mean(0)
    torch.testing.assert_close(model.stages[0].flows[0].norm.shift.detach(), mean)


def test_noise_conditional_flows_are_initialized_at_the_noise_scales_of_training(tmp_path):
    """Log-uniform scales s from 0.01 to 1 have E[s^2] = (1 - 0.01^2) / (2 log 100)."""
    model = Hierarchy([Stage(SoftRealNVP(4, couplings=1, hidden=8, mixing=True), 2)])
    how, rows = settings(steps=1, learning_rate=1e-12), np.zeros((2000, 4), np.float32)
    phase = Phase(model, Loss(), how, noise=InputNoise(1.0, 0.01))
    fit(phase, Batches(rows, 500), Batches(rows[:20], 20), tmp_path)
    norm = model.stages[0].flows[0].bijections[0].norm
    variances = (-2 * norm.log_scale.detach()).exp()
    assert variances.tolist() == pytest.approx(4 * [1 / (2 * math.log(100))], rel=0.2)


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e9])
def test_gradients_are_clipped_to_the_largest_norm(clip):
    batch = torch.from_numpy(data(16))
    trainer = Trainer(Phase(small(), MSE, settings(clip=clip)))
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
@pytest.mark.parametrize(
    ("damaged", "steps", "message"),
    [(["last"], 20, "is damaged"), (["last", "earlier"], 30, "restarts from the beginning")],
)
def test_damaged_checkpoints_are_skipped(tmp_path, caplog, damage, damaged, steps, message):
    uninterrupted, history = run(tmp_path / "uninterrupted")
    interrupt(tmp_path / "damaged", 30)
    for name in damaged:
        path = tmp_path / "damaged" / f"{name}.safetensors"
        path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "submanifold"):
        resumed, again = run(tmp_path / "damaged")
    assert message in caplog.text
    assert again["steps_trained"] == steps
    assert all(map(torch.equal, resumed.parameters(), uninterrupted.parameters()))
    assert again["train"][-1]["loss"] == history["train"][-1]["loss"]


@pytest.mark.parametrize("wrong", [lambda loss: loss * math.nan, lambda loss: loss * 1e30])
def test_a_batch_that_overflows_changes_no_weight_to_nan(tmp_path, wrong):
    hierarchy, history = run(tmp_path, Faulty(bad={13, 20, 25}, wrong=wrong), steps=40)
    assert history["rollbacks"] == 0
    assert [row["step"] for row in history["train"]] == [10, 30, 40]
    assert all(math.isfinite(row["loss"]) for row in history["train"] + history["valid"])
    assert all(torch.isfinite(p).all() for p in hierarchy.parameters())


def test_a_phase_that_continues_others_ends_with_its_best_weights_if_it_diverges(tmp_path, caplog):
    hierarchy = small()
    start = {name: weight.clone() for name, weight in hierarchy.state_dict().items()}
    train, valid = Batches(data(), 16, seed=1), Batches(data(40, seed=5), 16)
    loss = Faulty(bad=range(1, 1000), wrong=lambda loss: loss * math.nan)
    phase = Phase(hierarchy, loss, settings(), fresh=())
    with caplog.at_level(logging.WARNING, "submanifold"):
        history = fit(phase, train, valid, tmp_path, "reconstruction")
    assert (history["best_step"], history["rollbacks"]) == (0, 3)
    assert "halved 3 times; the weights of step 0 are kept" in history["warnings"]["divergence"]
    assert history["warnings"]["divergence"] in caplog.text
    assert all(torch.equal(weight, start[name]) for name, weight in hierarchy.state_dict().items())
    with pytest.raises(UserError, match="stage_1: the loss or its gradient was not finite at step"):
        run(tmp_path / "first", loss)


def test_losses_that_are_not_finite_roll_back_and_halve_the_learning_rate(tmp_path, caplog):
    rates, loss = [], Faulty(bad=range(11, 31))
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    try:
        with caplog.at_level(logging.WARNING, "submanifold"):
            hierarchy, history = run(tmp_path, loss)
    finally:
        hook.remove()
    assert "stage_1: not finite at step 30; back to step 10" in caplog.text
    assert "learning rate halved (1 of 3)" in caplog.text
    # ten good steps, twenty before the rollback, and the last twenty at half the rate
    assert rates == [0.01] * 30 + [0.005] * 20
    assert loss.calls == 50
    assert (history["rollbacks"], history["steps_trained"]) == (1, 30)
    assert [row["step"] for row in history["train"]] == [10, 20, 30]
    assert all(math.isfinite(row["loss"]) for row in history["train"] + history["valid"])
    assert all(torch.isfinite(p).all() for p in hierarchy.parameters())


def test_the_training_fails_after_three_rollbacks_and_can_be_continued(tmp_path):
    loss = Faulty(bad=range(11, 1000))
    with pytest.raises(UserError, match=r"stage_1: .*not finite at step 30.*learning_rate"):
        run(tmp_path, loss)
    assert loss.calls == 10 + 4 * 20
    loss = Faulty(bad=())
    _, history = run(tmp_path, loss)
    assert (history["rollbacks"], loss.calls) == (3, 20), "rollbacks survive a restart"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup": 10, "cooldown_fraction": 0.4}, {0: 0.1, 9: 1.0, 60: 1.0, 80: 0.5, 99: 0.025}),
        ({"warmup": 10, "lr_scale": 0.5}, {0: 0.05, 9: 0.5, 99: 0.5}),
        ({"warmup": 80, "cooldown_fraction": 1.0}, {39: 0.5, 43: 0.55, 44: 0.56, 99: 0.01}),
        ({"cooldown_fraction": 0.5, "span": (0.25, 0.75)}, {0: 1.0, 50: 1.0, 75: 0.75, 100: 0.5}),
    ],
    ids=str,
)
def test_the_learning_rate_warms_up_stays_and_cools_down(changes, expected):
    factors = {step: settings(steps=100, **changes).lr_factor(step) for step in expected}
    assert factors == pytest.approx(expected)


def test_a_training_ends_in_its_time_and_is_not_repeated(tmp_path):
    limits = {"steps": 10**6, "seconds": 0.3, "validate_every": 10**6}
    _, history = run(tmp_path, **limits)
    assert 10 <= history["steps"] < 10**5
    assert history["steps"] == history["train"][-1]["step"] == history["valid"][-1]["step"]
    _, again = run(tmp_path, **limits)
    assert (again["steps"], again["steps_trained"]) == (history["steps"], 0)


def test_a_training_stops_when_validations_do_not_improve(tmp_path):
    memorizing = {"rows": data(16), "learning_rate": 0.05, "steps": 400, "patience": 2}
    hierarchy, history = run(tmp_path, **memorizing)
    assert history["steps"] == history["best_step"] + 20 < 400
    assert history["valid"][-1]["step"] == history["steps"]
    best = min(row["loss"] for row in history["valid"])
    assert evaluate(hierarchy)["loss"] == pytest.approx(best)
    _, again = run(tmp_path, **memorizing)
    assert (again["steps"], again["steps_trained"]) == (history["steps"], 0)
    _, patient = run(tmp_path / "all", **memorizing | {"patience": None})
    assert patient["steps"] == 400


def test_weights_that_are_not_kept_have_no_warning(tmp_path):
    _, history = run(tmp_path, rows=data(8), learning_rate=0.05, steps=200)
    gap = history["valid"][-1]["bits_per_dim"] - history["train"][-1]["bits_per_dim"]
    assert gap > monitor.LARGEST_GAP
    assert history["best_step"] < 100
    assert not history["warnings"]


def test_the_steps_that_are_left_follow_the_time():
    limited = settings(steps=100, seconds=50.0, cooldown_fraction=0.5)
    trainer = Trainer(Phase(small(), MSE, limited))
    trainer.state.step = 20
    for passed, per_step, steps in ((8, 0.4, 100), (20, 1, 50), (20, 0.5, 50), (70, 1, 21)):
        trainer.keep_time(passed, per_step)
        assert trainer.state.steps == steps
    assert trainer.settings.lr_factor(20, 21) < trainer.settings.lr_factor(20)
    unlimited = Trainer(Phase(small(), MSE, settings(steps=100)))
    unlimited.keep_time(1e9, 1e9)
    assert unlimited.state.steps == 100


def test_a_span_is_inside_the_schedule():
    with pytest.raises(ValidationError, match=r"span\.1\s+Input should be less than or equal to 1"):
        settings(span=(0, 1.5))
    for span in ((0.9, 0.1), (0.5, 0.5)):
        with pytest.raises(ValueError, match=r"span: expected a start below the end, got \["):
            settings(span=span)


WEIGHTS = "architecture or initial weights"


def with_another_value(change):
    rows = data()
    rows[-1, 1] += change
    return rows


OTHERS = [
    ("data", {"rows": data(seed=2)}),
    ("data", {"rows": with_another_value(0.5)}),
    ("data", {"rows": 1e-5 * data(seed=2), "trained": 1e-5 * data()}),
    ("rows, data", {"rows": data(80)}),
    ("seed", {"seed": 2}),
    ("dim", {"hierarchy": small(d=3)}),
    *(
        (WEIGHTS, {"hierarchy": small(**other)})
        for other in ({"seed": 1}, {"couplings": 4}, {"width": 9})
    ),
    ("loss", {"loss": Loss(reconstruction={"penalty": "mse", "weight": 2.0})}),
    ("learning_rate, clip", {"learning_rate": 0.02, "clip": None}),
]


@pytest.mark.parametrize(("name", "changes"), OTHERS)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, name, changes, caplog):
    changes = {"trained": data(), **changes}
    rows = changes.pop("trained")
    run(tmp_path, steps=10, rows=rows)
    with caplog.at_level(logging.INFO, "submanifold"):
        _, again = run(tmp_path, steps=10, rows=rows * np.float32(1 + 1e-5))  # rounding
    assert again["steps_trained"] == 0
    assert f"delete {tmp_path} to train again" in caplog.text
    with pytest.raises(UserError, match=rf"expected .* this training, got one with other {name}\."):
        run(tmp_path, **{"steps": 10, **changes})


def outer(seed):
    torch.manual_seed(seed)
    return Hierarchy([Stage(RealNVP(6, couplings=2, mixing=True), 4)])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("input_noise", {"noise": InputNoise(0.2, 0.01)}),
        ("input_noise_min", {"noise": InputNoise(0.1, 0.02)}),
        (WEIGHTS, {"outer": outer(1)}),
    ],
)
def test_the_noise_and_the_frozen_stages_are_those_of_the_checkpoint(name, changes):
    train = Batches(data(), 16)
    phase = Phase(small(), MSE, settings(), outer(0), InputNoise(0.1, 0.01))
    identities = phase.identity(train), replace(phase, **changes).identity(train)
    assert [key for key, value in identities[0].items() if value != identities[1][key]] == [name]


class Unstable(RealNVP):
    """A flow with a wrong inverse."""

    def inverse(self, z, context=None):
        return super().inverse(z, context) + 0.1


def test_a_wrong_inverse_is_logged_once_and_kept_in_the_history(tmp_path, caplog):
    hierarchy = Hierarchy([Stage(Unstable(4, 2, 8), 2)])
    with caplog.at_level(logging.WARNING, "submanifold"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(FLOWS, "unstable", Unstable)
        _, history = run(tmp_path, hierarchy=hierarchy)
    assert caplog.text.count("stage_1: at step 10 the inverse differs from its input by 0.") == 1
    assert "training.learning_rate" in history["warnings"]["inverse"]
    assert all(row["inverse_error"] > 0.01 for row in history["valid"])


def test_a_loss_that_stays_far_above_the_start_rolls_back(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "submanifold"):
        _, history = run(tmp_path, Faulty(range(20, 31), wrong=lambda loss: loss + 100), steps=40)
    assert re.search(r"stage_1: 10\d, far above the \S+ of the start at step 30", caplog.text)
    # the checkpoint of step 20, whose loss is suspicious, is not kept
    assert "back to step 10" in caplog.text
    assert (history["rollbacks"], history["steps_trained"]) == (1, 40)
    with pytest.raises(UserError, match=r"far above.*muon_lr \(now 0\.02\)"):
        run(tmp_path / "again", Faulty(range(11, 99), wrong=lambda loss: loss + 100), muon_lr=0.02)


@pytest.mark.parametrize(
    ("of_valid", "scored", "is_warned"),
    [
        (16.0, {}, True),
        (14.0, {}, False),
        (-16.0, {}, False),
        (16.0, {monitor.SCORED_LOSS: 2.0}, False),
    ],
)
def test_validation_data_of_far_lower_density_are_a_warning(of_valid, scored, is_warned):
    row = {"step": 40, "inverse_error": 0.0, "bits_per_dim": of_valid, **scored}
    texts = monitor.warnings(row, {"bits_per_dim": 5.0})
    assert [*texts] == ["memorized"] * is_warned
    assert (
        not is_warned
        or "validation data have 16 bits per dimension and training data 5" in (texts["memorized"])
    )
