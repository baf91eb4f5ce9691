"""Settings of two small methods."""

import yaml

TABLES = """
dataset: photos
method: two
seed: 3
device: cpu
datasets: {photos: {source: photos, size: 8}, folder: {source: folder}}
methods:
  two:
    stage_1: {flow: {type: glow}, dim: 20}
    stage_2: {dim: 10}
    phases: {first: {stages: 1}, second: {stages: 2}}
  one: {stage_1: {flow: {type: glow}, dim: 9}, phases: {first: null}}
  both: {stage_1: {flow: {type: glow}, dim: 20}, stage_2: {dim: 10}, phases: {first: {}}}
stage_defaults:
  glow:
    flow: {type: glow, levels: 2, steps: 1, width: 4, whiten: true}
    phase:
      reconstruction: &penalty {penalty: mse, weight: 1.0, space: image, delta: 0.1}
      training: {steps: 7, learning_rate: 0.001}
  realnvp:
    flow: {type: realnvp, couplings: 2}
    phase: &vectors {reconstruction: *penalty, training: {steps: 9, learning_rate: 0.0001}}
  affine: {flow: {type: affine}, phase: *vectors}
training_defaults:
  {batch_size: 8, warmup: 0, cooldown_fraction: 0.0, muon_lr: 0.02, clip: 1.0, ema: 0.9,
   validate_every: 5, precision: float32}
evaluation: {samples: 10, dequantizations: 1, inception_weights: null}
"""


def read_tables():
    """Return parameters as Kedro merges them from conf/base."""
    return yaml.safe_load(TABLES)
