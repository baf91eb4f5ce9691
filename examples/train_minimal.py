"""Train the default method on a folder of images: its loop, written out, without Kedro.

    python examples/train_minimal.py pictures/

The result is that of `submanifold train pictures/`: `model.safetensors`, with the same figures.
"""

import sys
from pathlib import Path

import torch

from submanifold.common.device import SeededRandom, autocast, choose_device, choose_precision
from submanifold.config.resolve import default_method
from submanifold.data import Batches
from submanifold.data.batches import fixed_batches
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.flows import initialize
from submanifold.models import Hierarchy
from submanifold.training import Phase, RotationSettings, encode_rows, fit_rotation
from submanifold.training.optimizers import optimizers_for
from submanifold.training.phases import assemble

SEED = 0


def train(phase: Phase, batches: Batches, valid: Batches) -> None:
    """Algorithm 1: minimize the loss of a phase, and keep the best average of the weights."""
    model, settings = phase.model, phase.settings
    initialize(model, batches.at(0)[0], phase.fresh)
    weights, best, lowest = list(model.parameters()), {}, float("inf")
    average = [weight.detach().clone() for weight in weights]
    optimizers = optimizers_for(model, settings.learning_rate, settings.muon_lr)
    precision = choose_precision(settings.precision, weights[0])
    generator = torch.Generator(batches.device)
    for step in range(settings.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr_factor(step) * optimizer.defaults["lr"]
        x, _ = batches.at(step, generator)
        with autocast(x.device, precision):
            loss = phase.evaluate(x, None, generator)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            decay = min(settings.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, weights, 1 - decay)
            if (step + 1) % settings.validate_every and step + 1 < settings.steps:
                continue
            trained = [weight.clone() for weight in weights]
            torch._foreach_copy_(weights, average)
            losses = [phase.evaluate(x)["loss"] * len(x) for x, _ in valid.in_order(generator)]
            if (total := sum(losses).item()) < lowest:
                lowest = total
                best = {name: value.clone() for name, value in model.state_dict().items()}
            torch._foreach_copy_(weights, trained)
            print(f"step {step + 1}: loss {loss.item():.3f}, valid {total / len(valid):.3f}")
    model.load_state_dict(best)


def main(pictures: str, folder: Path, size: int = 32, dim: int = 500) -> dict[str, float]:
    """Algorithm 2: train on the images in a folder or zip, phase by phase."""
    device = choose_device("auto")
    data = ImageSettings(source="folder", path=pictures, size=size)
    images, held_out, test, _ = prepare(data, folder / "data", folder / "raw")
    settings, phases = default_method("folder", dim)  # conf/base/parameters*.yml
    settings, model = settings.limited(len(images)), None
    for number, phase in enumerate(phases.values()):
        rows, valid = images, held_out
        if phase.stages[0] > 1:
            outer = Hierarchy(model.stages[: phase.stages[0] - 1])
            rows, valid = (encode_rows(outer, x, SEED, device) for x in (images, held_out))
        seed = SEED + 2**32 * number  # other noise in every phase
        if isinstance(phase, RotationSettings):
            fit_rotation(model.to(device), Batches(rows, 64, seed, device), phase.probes)
            continue
        with SeededRandom(SEED, device).block():
            model, training = assemble(phase, settings, model, rows.x.shape[1:], device)
            size = phase.training.batch_size
            valid = valid[: phase.training.validation_rows]
            train(training, Batches(rows, size, seed, device), Batches(valid, size, SEED, device))
        model.requires_grad_(True).eval()
    model.with_facts(data=data.facts).save(folder / "model.safetensors")

    model.to(device)
    log_prob = per_event(model.log_prob, fixed_batches(test, 256, device))
    errors = squared_errors(model.encoder_projection, fixed_batches(test, 256, device))
    return {"bits_per_dim": model.to_bits_per_dim(log_prob).mean(), "mse": errors.mean()}


if __name__ == "__main__":
    print(main(sys.argv[1], Path()))
