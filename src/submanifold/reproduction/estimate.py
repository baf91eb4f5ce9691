"""How long a training will take, by timing a few of its steps."""

import json
import math
import time
from functools import cache

import torch

from submanifold.config import stage_settings
from submanifold.data.settings import read_data_settings
from submanifold.manifold import StageSettings, build_hierarchy
from submanifold.reproduction.experiments import Experiment
from submanifold.training.trainer import TrainingSettings, choose_device, choose_precision
from submanifold.validation import read_settings

STEPS = 3


def training_seconds(experiment: Experiment, history: str) -> float:
    """Estimate the seconds that one of an experiment's trainings takes, on this machine now.

    Args:
        experiment: Whose training it is.
        history: Its name among :attr:`Experiment.trainings`.
    """
    parameters = experiment.parameters
    stages, shape = stage_settings(parameters), read_data_settings(parameters["data"]).event_shape
    if history == "joint_history":
        chosen = list(stages.values())
    else:
        name = history.removesuffix(".history")
        for outer, settings in stages.items():
            if outer == name:
                break
            shape = (settings["dim"] or math.prod(shape),)
        chosen = [stages[name]]
    training = chosen[0]["training"]
    untrained = [{k: v for k, v in stage.items() if k != "training"} for stage in chosen]
    device = parameters["device"]
    seconds = _seconds_per_step(json.dumps(untrained), json.dumps(training), shape, device)
    return seconds * training["steps"]


@cache
def _seconds_per_step(stages: str, training: str, shape: tuple[int, ...], device: str) -> float:
    place = choose_device(device)
    settings = [read_settings(StageSettings, each, "stage") for each in json.loads(stages)]
    how = read_settings(TrainingSettings, json.loads(training), "training")
    hierarchy, objective = build_hierarchy(settings, shape).to(place), settings[0].objective()
    optimizer = torch.optim.Adam(hierarchy.parameters(), lr=0.0)
    precision = choose_precision(how.precision, next(hierarchy.parameters()))
    x = torch.rand(how.batch_size, *shape, device=place) - 0.5
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        with torch.autocast(place.type, precision, precision == torch.bfloat16):
            loss = objective(hierarchy, x)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times)
