"""Pictures of coloured shapes on a textured background: a task that a network learns in a few dozen steps.

A category is a pair of shape and hue, the same in every data set: category 7 of generated COCO looks like category 7 of
generated ADE20K. No two shapes of a picture overlap, so outlines and boxes are exact.
"""
import math

import cv2
import numpy as np


def _regular(corners, inner=1.0):
    """Outline of a regular polygon within the unit circle, (N, 2) as x, y; every second corner at radius `inner`."""
    angles = 2 * math.pi * np.arange(corners) / corners - math.pi / 2
    radii = np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


_OUTLINES = (_regular(32), _regular(3), _regular(4), _regular(10, inner=0.4), _regular(8, inner=0.3))
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, spread any number of hues evenly


def scene(rng, size, labels):
    """Draw one shape for each label, somewhere in its own cell of a grid.

    Args:
        rng: numpy Generator, the only source of chance.
        size: (height, width) in pixels.
        labels: categories to draw, integers from 0.

    Returns:
        The picture, (height, width, 3) uint8 in OpenCV's BGR order, and one outline for each label, (N, 2) int32 pixel
        coordinates x, y of its corners. The filled outline, corners included, is the mask.
    """
    height, width = size
    picture = _background(rng, size)
    columns = math.ceil(math.sqrt(len(labels) * width / height))
    rows = math.ceil(len(labels) / columns)
    cell = np.array([width / columns, height / rows])
    outlines = []
    for label, place in zip(labels, rng.permutation(rows * columns)):
        radius = rng.uniform(0.5, 0.95) * (cell.min() / 2 - 1)
        centre = cell * (place % columns, place // columns) + rng.uniform(radius + 1, cell - radius - 1)
        turn = rng.uniform(-0.4, 0.4)  # radians
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        outline = (centre + radius * _OUTLINES[label % len(_OUTLINES)] @ rotation).astype(np.int32)
        cv2.fillPoly(picture, [outline], _colour(label))
        outlines.append(outline)
    noise = rng.integers(-12, 13, size=picture.shape, dtype=np.int16)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), outlines


def _background(rng, size):
    """Dark blotches of weak colour, no two pictures alike."""
    coarse = rng.uniform(40, 110, size=(5, 7, 1)) + rng.uniform(-15, 15, size=(5, 7, 3))
    return np.clip(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def _colour(label):
    """The label's colour as a BGR tuple of uint8 values."""
    hue = round(180 * (label * _GOLDEN_RATIO % 1)) % 180  # OpenCV counts hues in steps of two degrees
    bgr = cv2.cvtColor(np.array([[[hue, 200, 240]]], dtype=np.uint8), cv2.COLOR_HSV2BGR)
    return tuple(int(value) for value in bgr[0, 0])
