"""A user's own model and data, on the path as they would be for a user."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

USER_CODE = Path(__file__).parent / "user_code"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, the user's modules importable, and global state put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(USER_CODE))
    monkeypatch.setenv("GRAPHATTN_CACHE", str(tmp_path / "cache"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    on_interrupt = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        yield tmp_path
    signal.signal(signal.SIGINT, on_interrupt)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., str]:
    """Write a configuration of the toy task; keyword arguments are dotted keys with ``__`` for the dots."""

    def write(name: str = "toy.yaml", **changes: Any) -> str:
        config = yaml.safe_load((USER_CODE / "toy.yaml").read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return write
