"""Few combinations of options that hold every pair of their values."""

from __future__ import annotations

import itertools
import random
from typing import Any

__all__ = ["covering_rows"]


def covering_rows(options: dict[str, tuple[Any, ...]], seed: int = 0) -> list[dict[str, Any]]:
    """Rows with a value for each option such that every pair of values of two options stands in some row.

    Greedy (as AETG, Cohen et al., IEEE TSE 1997): each row begins with a pair that is missing and then takes, option by
    option in random order, the value that adds most new pairs; the best of a few attempts is kept.
    """
    draw = random.Random(seed)
    names = list(options)
    missing = dict.fromkeys(  # a set in a fixed order
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in options[a] for y in options[b]
    )
    place = {name: i for i, name in enumerate(names)}

    def pair(a: tuple[str, Any], b: tuple[str, Any]) -> tuple[tuple[str, Any], tuple[str, Any]]:
        return (a, b) if place[a[0]] < place[b[0]] else (b, a)

    def attempt(start: tuple[tuple[str, Any], tuple[str, Any]]) -> tuple[int, dict[str, Any]]:
        row, gain = dict(start), 1
        rest = [name for name in names if name not in row]
        draw.shuffle(rest)
        for name in rest:
            scored = [
                (sum(pair((name, value), chosen) in missing for chosen in row.items()), draw.random(), i)
                for i, value in enumerate(options[name])
            ]
            new, _, i = max(scored)
            row[name], gain = options[name][i], gain + new
        return gain, row

    rows = []
    while missing:
        starts = list(missing)
        attempts = [attempt(draw.choice(starts)) for _ in range(8)]
        row = max(attempts, key=lambda attempt: attempt[0])[1]
        rows.append({name: row[name] for name in names})
        for a, b in itertools.combinations(row.items(), 2):
            missing.pop(pair(a, b), None)
    return rows
