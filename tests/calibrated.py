"""A small calibrated model of images, for tests of inference."""

import io

import numpy as np
from PIL import Image

from strategies import initialized_glow
from submanifold.evaluation.calibration import Calibration
from submanifold.evaluation.scores import QUICK, score


def smooth_images(count, seed, channels=3):
    """Images with a vertical gradient and little noise, uint8 (count, channels, 8, 8)."""
    rng = np.random.default_rng(seed)
    gradient = np.linspace(60, 180, 8)[:, None] * np.ones(8)
    brightness = rng.normal(0, 15, (count, channels, 1, 1))
    pixels = gradient + brightness + rng.normal(0, 3, (count, channels, 8, 8))
    return pixels.clip(0, 255).astype(np.uint8)


def calibrated_model(channels=3):
    """A Glow initialized from smooth images and calibrated on 200 others."""
    model = initialized_glow(smooth_images(256, 0, channels), 16, steps=2, whiten=channels == 3)
    model.stages[0].add_rotation()
    model.data = {"size": 8, "channels": channels, "crop": "square", "margin": 0}
    held_out = score(model, smooth_images(200, 1, channels))
    model.calibration = Calibration.fit(held_out, QUICK).to_dict()
    return model


def png(image):
    """Encode an image (channels, height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()
