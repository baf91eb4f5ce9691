"""Cells of tables and rows of images of pages."""

import base64
import io
import re

import numpy as np
from PIL import Image


def cells(page):
    """Return the texts of the cells of each row of a table, without intervals."""
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    parts = [re.findall(r"<(t[hd])\b(.*?)</\1>", row, re.DOTALL) for row in rows]
    texts = [
        [re.sub(r"<small>.*?</small>|<[^>]*>|^[^>]*>", "", text) for _, text in row]
        for row in parts
    ]
    return [[text.strip() for text in row] for row in texts]


def pictures(page):
    """Return the label, the text and the pixels of the strips of each row of images."""
    texts = dict(re.findall(r'<div class="caption"><b>([^<]*)</b>([^<]*)</div>', page))
    strips = {}
    for label, image in re.findall(r'<img class="pixels" alt="([^"]*)" src="[^,]*,([^"]*)"', page):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
        strips.setdefault(label, []).append(pixels)
    return [(label, texts[label].strip(), strips[label]) for label in texts if label in strips]
