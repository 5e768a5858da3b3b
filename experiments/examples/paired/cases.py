"""What is compared, and how one import line of a script is swapped."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

__all__ = ["CASES", "LENGTHS", "OURS", "PYG", "SIDES", "Case", "script"]

OURS, PYG = "graphattn", "pyg"
SIDES = (PYG, OURS)

_FOLDER = Path(__file__).resolve().parents[1]
_LINE = {OURS: "from graphattn.conv import ", PYG: "from torch_geometric.nn import "}


LENGTHS = ("full", "short", "quick")


class Case(NamedTuple):
    """One script with one set of arguments."""

    name: str
    file: str
    """The script, which has ``parse``, ``load``, ``build``, ``loss_of`` and ``fit``."""
    argv: str
    """Its arguments, names and values in turn."""
    lengths: tuple[str, str, str]
    """More arguments for each of :data:`LENGTHS`: what a GPU trains in a minute, a CPU in a minute, a smoke test."""
    synthetic: str
    """What is different for generated data."""
    metric: str
    more_is_better: bool = True
    batches: bool = False
    """``load`` returns loaders, the first of the training batches, rather than one graph for every step."""

    def arguments(self, device: str, length: str, synthetic: bool = False) -> list[str]:
        """The command line of the script."""
        found = {"--device": device}
        for text in (self.argv, self.lengths[LENGTHS.index(length)], self.synthetic if synthetic else ""):
            words = text.split()
            found.update(zip(words[::2], words[1::2], strict=True))
        return [word for pair in found.items() for word in pair]


def script(file: str, side: str) -> ModuleType:
    """A script with the layers of one side: its source is the file's, but for the one import line.

    Raises:
        ValueError: If there is not exactly one such line.
    """
    path = _FOLDER / file
    source = path.read_text(encoding="utf-8")
    if sum(line.startswith(_LINE[OURS]) for line in source.splitlines()) != 1:
        raise ValueError(f"{file} must have exactly one line that begins with {_LINE[OURS]!r}")
    source = source.replace(f"\n{_LINE[OURS]}", f"\n{_LINE[side]}")
    module = ModuleType(f"{path.stem}_with_{side}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where classes are looked up by name
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


_FAKE = "--dataset fake"
_EPOCHS = ("--epochs 200", "--epochs 40", "--epochs 5")
_MOLECULES = (
    "--train_graphs 4000 --epochs 15",
    "--train_graphs 600 --epochs 4",
    "--train_graphs 100 --epochs 1",
)

CASES = (
    Case("cora-gat", "cora.py", "--conv gat", _EPOCHS, _FAKE, "accuracy, %"),
    Case("cora-transformer", "cora.py", "--conv transformer", _EPOCHS, _FAKE, "accuracy, %"),
    Case(
        "minesweeper",
        "minesweeper.py",
        "--conv transformer",
        ("--epochs 200", "--epochs 16", "--epochs 3"),
        "--dataset generated --rows 12",
        "ROC-AUC, %",
    ),
    Case("zinc-gps", "zinc.py", "--conv gps", _MOLECULES, _FAKE, "MAE", False, True),
    Case("zinc-transformer", "zinc.py", "--conv transformer", _MOLECULES, _FAKE, "MAE", False, True),
    Case(
        "neighbor-sampling",
        "neighbor_sampling.py",
        "",
        ("--epochs 30", "--epochs 4", "--epochs 1"),
        _FAKE,
        "ROC-AUC, %",
        True,
        True,
    ),
    Case(
        "hetero-hgt",
        "hetero.py",
        "--conv hgt",
        ("--epochs 60", "--epochs 12", "--epochs 2"),
        _FAKE,
        "accuracy, %",
    ),
    Case(
        "hetero-transformer",
        "hetero.py",
        "--conv transformer",
        ("--epochs 60", "--epochs 15", "--epochs 2"),
        _FAKE,
        "accuracy, %",
    ),
)
