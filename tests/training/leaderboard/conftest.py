"""The fixtures of tests/training, whose conftest.py importlib mode already applies here, and a section leaderboard."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

SECTION: dict[str, Any] = {
    "dataset": "toy",
    "method": "GCN",
    "seeds": 2,
    "published": [
        {"method": "better", "test": 99.0, "test_std": 0.5, "source": "nobody"},
        {"method": "worse", "test": 10.0, "validation": 11.0, "parameters": 7, "source": "nobody"},
    ],
}


@pytest.fixture
def toy_config(write_config: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write the toy configuration with a section; processes started find the user's code."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def write(**changes: Any) -> str:
        return write_config(**{"leaderboard": copy.deepcopy(SECTION), **changes})

    return write
