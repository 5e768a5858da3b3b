"""The device of a command: asked for before anything is measured, so that a table of failures is never written."""

from __future__ import annotations

import argparse

import torch

__all__ = ["check_device"]


def check_device(parser: argparse.ArgumentParser, device: str, instead: str) -> torch.device:
    """The device, or the error of the command that there is none.

    Args:
        parser: Of the command.
        device: What was asked for, or is the default.
        instead: Options with which the command runs without a GPU.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        parser.error(f"--device must be cuda or cpu, got {device!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"there is no CUDA device here; without one: {instead}")
    return found
