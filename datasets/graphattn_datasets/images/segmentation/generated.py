"""Scenes of blobs, polygons and thin curves in front of clutter, with instance numbers; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from graphattn.errors import ArgumentError

__all__ = ["KINDS", "generate_scenes"]

KINDS = ("blob", "polygon", "curve")
OBJECTS = 4  # at most, in a scene


def generate_scenes(
    count: int, size: int = 64, *, kinds: Sequence[str] = KINDS, seed: int | Sequence[int] = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes of 1 to 4 objects of high contrast, which may touch and hide each other, in front of fainter clutter
    and texture, under light that falls off to one side.

    Args:
        count: Scenes.
        size: Pixels of a side, at least 16.
        kinds: What is drawn: ``"blob"``, ``"polygon"``, ``"curve"`` (1 to 3 pixels thin).
        seed: Of the draw; one number or several.

    Returns:
        uint8 ``[count, 3, size, size]``, and int32 ``[count, size, size]``: 0 for the background, else the object. Each
        number is one piece whose pixels touch by sides or corners (what an object leaves of another in two pieces
        counts as two).

    Raises:
        ArgumentError: If the arguments are out of range.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ArgumentError(f"kinds must be among {KINDS}, got {list(kinds)}")
    if count < 1 or size < 16:
        raise ArgumentError(f"count must be at least 1 and size at least 16, got {count} and {size}")
    random = np.random.Generator(np.random.PCG64(list(np.atleast_1d(seed))))
    images, masks = np.empty((count, 3, size, size), np.uint8), np.empty((count, size, size), np.int32)
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    for number in range(count):
        image, mask = _scene(random, rows, columns, kinds)
        while not mask.any():  # all of it outside, say
            image, mask = _scene(random, rows, columns, kinds)
        images[number] = np.clip(image, 0, 1) * 255 + 0.5
        masks[number] = mask
    return images, masks


def _scene(
    random: np.random.Generator, rows: np.ndarray, columns: np.ndarray, kinds: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    size = len(rows)
    ground = random.uniform(0.3, 0.7, 3)
    image = ground[:, None, None] + _texture(random, size, 0.06)
    for _ in range(random.integers(4, 10)):  # clutter: the same shapes, smaller and faint
        inside = _shape(random, rows, columns, kinds[int(random.integers(len(kinds)))], 0.5)
        image[:, inside] += random.uniform(-0.12, 0.12, (3, 1))
    mask = np.zeros((size, size), np.int32)
    for _ in range(random.integers(1, OBJECTS + 1)):
        inside = _shape(random, rows, columns, kinds[int(random.integers(len(kinds)))], 1.0)
        contrast = random.choice([-1.0, 1.0], 3) * random.uniform(0.25, 0.45, 3)
        image[:, inside] = ((ground + contrast)[:, None, None] + _texture(random, size, 0.04))[:, inside]
        mask[inside] = mask.max() + 1
    angle, fall = random.uniform(0, 2 * np.pi), random.uniform(0, 0.5)
    light = 1 + fall * ((np.cos(angle) * columns + np.sin(angle) * rows) / size - 0.5)
    image = image * light + random.normal(0, 0.02, image.shape)
    return image, _pieces(mask)


def _pieces(mask: np.ndarray) -> np.ndarray:
    """A number of its own for each piece of each object, from 1."""
    pieces = np.zeros_like(mask)
    for number in range(1, mask.max() + 1):
        found, many = ndimage.label(mask == number, structure=np.ones((3, 3)))
        for piece in range(1, many + 1):
            inside = found == piece
            if inside.sum() > 1:  # a lone pixel has no neighbour to be connected to
                pieces[inside] = pieces.max() + 1
    return pieces


def _shape(random: np.random.Generator, rows: np.ndarray, columns: np.ndarray, kind: str, scale: float) -> np.ndarray:
    """Which pixels are inside a shape at a random place."""
    size = len(rows)
    centre = random.uniform(0.15, 0.85, 2) * size
    if kind == "curve":
        return _curve(random, rows, columns, centre, scale)
    radius = scale * random.uniform(0.1, 0.24) * size
    y, x = rows - centre[0], columns - centre[1]
    angle, distance = np.arctan2(y, x), np.hypot(y, x)
    if kind == "blob":
        order = np.arange(2, 6)[:, None, None]
        strength = random.normal(0, 0.35, (4, 1, 1)) / order
        border = 1 + (strength * np.cos(order * angle + random.uniform(0, 2 * np.pi, (4, 1, 1)))).sum(0)
        return distance <= radius * border.clip(0.3)
    corners = random.integers(3, 7)
    at = (np.arange(corners) + random.uniform(0, 0.7, corners)) * 2 * np.pi / corners
    inside = np.ones_like(rows, dtype=bool)
    for first, second in zip(at, np.roll(at, -1), strict=True):  # corners on a circle: convex
        ends = radius * 1.3 * np.array([[np.sin(first), np.cos(first)], [np.sin(second), np.cos(second)]])
        edge = ends[1] - ends[0]
        inside &= edge[1] * (y - ends[0, 0]) - edge[0] * (x - ends[0, 1]) >= 0
    return inside


def _curve(
    random: np.random.Generator, rows: np.ndarray, columns: np.ndarray, start: np.ndarray, scale: float
) -> np.ndarray:
    """A line that bends slowly, 1 to 3 pixels thin."""
    size = len(rows)
    steps = int(scale * random.uniform(0.6, 1.2) * size * 2)
    heading = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, 0.04, steps) + random.uniform(-1, 1) * 2 / size)
    path = start[:, None] + 0.5 * np.cumsum(np.stack([np.sin(heading), np.cos(heading)]), axis=1)
    path = path[:, ((path >= 0) & (path < size)).all(0)].astype(int)
    line = np.ones((size, size), dtype=bool)
    line[path[0], path[1]] = False
    thickness = random.uniform(0.5, 1.5)
    return ndimage.distance_transform_edt(line) < thickness if path.size else ~line


def _texture(random: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """Smooth noise ``[3, size, size]``: coarse numbers, blown up."""
    coarse = random.normal(0, strength, (3, size // 8 + 2, size // 8 + 2))
    at = np.linspace(0, size // 8 + 1, size)
    low = np.minimum(at.astype(int), size // 8)
    part = at - low
    along = coarse[:, low] * (1 - part)[:, None] + coarse[:, low + 1] * part[:, None]
    return along[:, :, low] * (1 - part) + along[:, :, low + 1] * part
