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
    """Return the label, the text and the pixels of each row of images; of several, a list."""
    texts = dict(re.findall(r'<div class="caption"><b>([^<]*)</b>([^<]*)</div>', page))
    shown = {}
    for label, image in re.findall(r'<img class="pixels" alt="([^"]*)" src="[^,]*,([^"]*)"', page):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
        shown.setdefault(label, []).append(pixels)
    return [(label, texts[label].strip(), shown[label]) for label in texts if label in shown]
