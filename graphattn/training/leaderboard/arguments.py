"""The arguments of ``graphattn leaderboard``; does not import Lightning."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from graphattn.errors import ArgumentError

__all__ = ["Arguments", "parse_arguments", "parse_seeds"]

_DESCRIPTION = """Train one configuration with several seeds and write the row that a leaderboard asks for.

Each seed is a "graphattn fit" of its own in <root>/<name>/seed_<seed>, one on each device at a time. Give the same
command again after a failure, a kill or Ctrl-C: finished seeds are kept, the others go on from their last epoch. The
row is written to <root>/<name>/leaderboard.md, .json and .png.
"""
_EPILOG = """examples:
  graphattn leaderboard --config experiments/ogb/molhiv.yaml --check
  graphattn leaderboard --config experiments/ogb/molhiv.yaml --seeds 10
  graphattn leaderboard --config experiments/ogb/molhiv.yaml --seeds 0,1,2 --draft --trainer.max_epochs=20

Everything else is handed on to "graphattn fit" (see graphattn fit --help).
"""


@dataclass
class Arguments:
    """What the command was asked for.

    Args:
        configs: Configuration files.
        seeds: The seeds, in the order given.
        parallel: Runs at the same time; ``None``: one for each device.
        draft: Write a row that is marked as a draft, from however many seeds.
        check: Only try the configuration out.
        overrides: Arguments of ``graphattn fit``.
    """

    configs: list[str]
    seeds: list[int]
    parallel: int | None
    draft: bool
    check: bool
    overrides: list[str]

    @property
    def fit(self) -> list[str]:
        """The arguments of ``graphattn fit``."""
        return [part for config in self.configs for part in ("--config", config)] + self.overrides


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line.

    Args:
        argv: Its arguments.

    Raises:
        ArgumentError: If the seeds are none, doubled or no numbers, or ``parallel`` is not positive.
        SystemExit: From ``argparse``, after it has printed its message or the help.
    """
    parser = argparse.ArgumentParser(
        prog="graphattn leaderboard",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action="append", required=True, metavar="FILE", help="configuration (YAML)")
    parser.add_argument(
        "--seeds", metavar="N|LIST", help="10 for the seeds 0 to 9, or a list 0,1,2 (default: as many as the rules ask)"
    )
    parser.add_argument("--parallel", type=int, metavar="N", help="runs at the same time (default: one a device)")
    parser.add_argument("--draft", action="store_true", help="write a row marked as a draft, from fewer seeds too")
    parser.add_argument(
        "--check", action="store_true", help="try the configuration out: one seed, one epoch of two batches, no files"
    )
    options, rest = parser.parse_known_args(list(argv))
    for word in rest:
        if word.partition("=")[0] == "--seed_everything":
            raise ArgumentError("--seed_everything is set for each run by --seeds; give --seeds 3 or --seeds 0,1,2")
    if options.parallel is not None and options.parallel < 1:
        raise ArgumentError(f"--parallel must be at least 1, got {options.parallel}")
    seeds = [] if options.seeds is None else parse_seeds(options.seeds)
    return Arguments(options.config, seeds, options.parallel, options.draft, options.check, rest)


def parse_seeds(text: str) -> list[int]:
    """Seeds from ``"10"`` (0 to 9) or ``"0,1,2"`` (a single one is ``"7,"``).

    Raises:
        ArgumentError: If there are none, one comes twice, or one is not a whole number from 0 up.
    """
    words = [word.strip() for word in text.split(",")]
    is_list = len(words) > 1
    words = [word for word in words if word]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise ArgumentError(f"--seeds must be a number (10) or a list (0,1,2) of whole numbers from 0 up, got {text!r}")
    seeds = [int(word) for word in words] if is_list else list(range(int(words[0]) if words else 0))
    if not seeds:
        raise ArgumentError(f"--seeds must be how many (10: seeds 0 to 9) or a list ('0,': seed 0), got {text!r}")
    doubled = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if doubled:
        raise ArgumentError(f"--seeds must not repeat a seed, got {', '.join(map(str, doubled))} more than once")
    if max(seeds) > 2**32 - 1:
        raise ArgumentError(f"--seeds must be at most 4294967295, got {max(seeds)}")
    return seeds
