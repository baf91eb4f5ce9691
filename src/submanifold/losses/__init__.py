"""Losses: functions of a batch that is encoded by the stages in training."""

from submanifold.losses.encoding import Encoding, InputNoise, draws, encode
from submanifold.losses.loss import Loss

__all__ = ["Encoding", "InputNoise", "Loss", "draws", "encode"]
