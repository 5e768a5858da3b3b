"""What the tests of several experiments need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The heading of each picture that an experiment saves during the test, by the name of its file."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    found: dict[str, str] = {}
    save = figure.savefig

    def savefig(self: Any, to: Any, **options: Any) -> None:
        if isinstance(to, Path):  # a run writes its own pictures into open files
            found[to.name] = self.get_suptitle() or self.axes[0].get_title()
        save(self, to, **options)

    monkeypatch.setattr(figure, "savefig", savefig)
    return found
