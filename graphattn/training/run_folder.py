"""Where a run lives, and what happens when something is there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from graphattn.errors import CheckpointError, ConfigError

__all__ = ["RunOptions", "choose_folder", "find_checkpoint"]

# Keys that say nothing about what is computed, and those in which a run may go on differently.
_ABOUT = ("run", "config", "ckpt_path", "leaderboard", "trainer.enable_progress_bar")
_MAY_DIFFER = (*_ABOUT, "trainer.max_epochs", "trainer.max_time")


@dataclass
class RunOptions:
    """The folder of a run: ``<root>/<name>/seed_<seed>``.

    Args:
        name: Name of the run; ``None``: the name of the config file.
        root: Folder of all runs.
        if_exists: What to do where a run is already: ``error``; ``resume`` it from its last checkpoint (a finished
            run just prints its results); ``version``: start beside it, in ``seed_<seed>_v2``.
        folder: The run's folder itself, instead of the rule.
    """

    name: str | None = None
    root: str = "runs"
    if_exists: Literal["error", "resume", "version"] = "error"
    folder: str | None = None

    def planned(self, seed: int) -> Path:
        """The folder by the rule, whether or not something is there."""
        return Path(self.folder) if self.folder else Path(self.root) / str(self.name) / f"seed_{seed}"


def choose_folder(options: RunOptions, seed: int) -> Path:
    """The folder that a new run writes to.

    Args:
        options: Name and root, and what to do with what is there.
        seed: The run's seed.

    Returns:
        The folder; it need not exist.

    Raises:
        ConfigError: If it holds a run and ``if_exists`` is not ``"version"``.
    """
    folder = options.planned(seed)
    if not has_run(folder):
        return folder
    if options.if_exists != "version":
        state = "a finished run" if (folder / "results.json").exists() else "an unfinished run"
        raise ConfigError(
            f"{folder} holds {state}. Choose: --run.if_exists=resume goes on with it (or prints its results), "
            "--run.if_exists=version starts a new one beside it, --run.name=... gives the new run another name."
        )
    version = 2
    while has_run(folder.with_name(f"{folder.name}_v{version}")):
        version += 1
    return folder.with_name(f"{folder.name}_v{version}")


def has_run(folder: Path) -> bool:
    """Whether a folder holds something that would be missed."""
    return (folder / "results.json").exists() or any((folder / "checkpoints").glob("*.ckpt"))


def find_checkpoint(folder: Path, wanted: str | None) -> Path | None:
    """The file that ``ckpt_path`` means.

    Args:
        folder: The run's folder.
        wanted: ``"last"``, ``"best"``, ``"auto"`` (last if there is one), a file, or ``None``.

    Raises:
        CheckpointError: If there is no such file.
    """
    if wanted is None:
        return None
    if wanted in ("last", "best", "auto"):
        path = folder / "checkpoints" / f"{'last' if wanted == 'auto' else wanted}.ckpt"
        if wanted == "auto" and not path.exists():
            return None
    else:
        path = Path(wanted)
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.ckpt"))) if path.parent.is_dir() else ""
        raise CheckpointError(
            f"no checkpoint {path} (ckpt_path={wanted}); " + (f"that folder holds {there}" if there else "train first")
        )
    return path


def changed_keys(folder: Path, config: dict[str, Any], *, lengths: bool = False) -> list[str]:
    """Keys in which a configuration differs from the one that a folder was made with.

    Args:
        folder: The run's folder.
        config: The resolved configuration.
        lengths: Whether another run length (``max_epochs``, ``max_time``) is a difference.
    """
    may_differ = _ABOUT if lengths else _MAY_DIFFER
    path = folder / "config.yaml"
    if not path.is_file():
        return []
    old = _flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    new = _flatten(config)
    keys = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    return sorted(key for key in keys if not any(key == name or key.startswith(f"{name}.") for name in may_differ))


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, item in value.items()
        for key, leaf in _flatten(item, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def config_folder(config_files: list[Path]) -> Path | None:
    """The run folder that a config file lies in: ``test --config runs/x/seed_0/config.yaml`` finds its checkpoints."""
    for file in config_files:
        if (file.parent / "checkpoints").is_dir():
            return file.parent
    return None
