"""Checkpoints that are written whole or not at all, and read without running code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from graphattn._files import write_atomically
from graphattn.errors import CheckpointError

__all__ = ["AtomicCheckpointIO", "load_checkpoint"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, torch.dtype, torch.device, torch.Size)


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of a run: tensors and plain values only, never code.

    Args:
        path: The ``.ckpt`` file.
        map_location: Where its tensors go, as in ``torch.load``.

    Returns:
        The checkpoint as Lightning wrote it; the weights are under ``"state_dict"``.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.ckpt"))) if path.parent.is_dir() else ""
        raise CheckpointError(f"no checkpoint at {path}" + (f"; that folder holds {near}" if near else ""))
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise CheckpointError(
                f"{path} holds more than tensors and plain values, and reading it could run code, so it was not read. "
                f"It was not written by graphattn. ({_first_line(error)})"
            ) from error
        raise _unreadable(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of a training run: it has no state_dict")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written by :func:`write_atomically` and read by :func:`load_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint, or leave the old file as it is.

        Raises:
            CheckpointError: If the file cannot be written, on a full disk say.
        """
        if "hyper_parameters" in checkpoint:
            # A module that calls save_hyperparameters may record objects; as pickles they would be code.
            checkpoint = {**checkpoint, "hyper_parameters": _plain_entries(checkpoint["hyper_parameters"])}
        try:
            write_atomically(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch.save turns a failed write into a RuntimeError
            old = "the checkpoint that was there is untouched" if Path(path).exists() else "nothing was left behind"
            raise CheckpointError(
                f"could not write the checkpoint {path}: {_first_line(error)}; {old}. Is the disk full or read-only?"
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running code, whatever ``weights_only`` says."""
        return load_checkpoint(path, map_location)


def _plain_entries(values: Any) -> dict[str, Any]:
    kept = {str(key): value for key, value in dict(values).items() if _is_plain(value)}
    dropped = sorted(set(map(str, dict(values))) - set(kept))
    if dropped:
        rank_zero_warn(f"hyperparameters that are objects are not saved in checkpoints: {', '.join(dropped)}")
    return kept


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if type(value) in (list, tuple, set):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read as a checkpoint, it is truncated or corrupt ({_first_line(error)}). "
        "Use another file of its folder (last.ckpt, best.ckpt)."
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
