"""The command ``graphattn``. Its help and version answer at once: torch is imported only by a command that needs it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

__all__ = ["main"]

_TRAINING = {
    "fit": "train a model, then test its last and its best checkpoint",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split",
    "predict": "write a checkpoint's outputs on the test split; with --images, pictures of a segmentation",
    "leaderboard": "train with several seeds and write the row that a leaderboard asks for",
}
_LISTS = ("mechanisms", "models", "datasets", "backends")
_EPILOG = """examples:
  graphattn fit --config experiments/pattern/small.yaml
  graphattn fit --config experiments/pattern/small.yaml --trainer.max_epochs=5 --seed_everything=1
  graphattn fit --config runs/pattern-small/seed_41/config.yaml --ckpt_path last      (resume)
  graphattn test --config runs/pattern-small/seed_41/config.yaml --ckpt_path best
  graphattn predict --config runs/connnet-horses/seed_0/config.yaml --ckpt_path best --images photos
  graphattn leaderboard --config experiments/ogb/molhiv.yaml --seeds 10             (the same again goes on)
  graphattn fit --help                                                              (all options)
  graphattn list datasets

A configuration names classes that are imported and run: use only files that you trust.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; ``None``: those of the process.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong arguments or configuration, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("GRAPHATTN_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        if arguments and arguments[0] in _TRAINING:
            return _train(arguments[0], arguments[1:])
        return _dispatch(_parser().parse_args(arguments))
    except SystemExit as stop:  # argparse has printed its message or the help
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in "graphattn list datasets | head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        code = _expected(error)
        if code is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"graphattn: error: {error}", file=sys.stderr)
        return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphattn",
        description="Attention over explicit token graphs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"graphattn {_version()}")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of every error (or set GRAPHATTN_DEBUG)"
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, text in _TRAINING.items():  # for the help; main hands their arguments on unread
        commands.add_parser(name, help=text)
    lists = commands.add_parser("list", help=f"name the {', '.join(_LISTS[:-1])} or {_LISTS[-1]} there are")
    lists.add_argument("what", choices=_LISTS)
    commands.add_parser("env", help="print what a bug report needs")
    return parser


def _dispatch(options: argparse.Namespace) -> int:
    if options.command == "env":
        from graphattn.env import main as print_environment

        print_environment()
        return 0
    from graphattn import listing

    found = getattr(listing, f"list_{options.what}")()
    if isinstance(found, dict):  # backends, with the reason where one cannot run
        print("\n".join(f"{name:12s} {f'no: {reason}' if reason else 'runs'}" for name, reason in found.items()))
    else:
        print("\n".join(found))
    return 0


def _train(command: str, arguments: list[str]) -> int:
    # A console script does not have the current folder on its path, where a user keeps the model that a config names.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from graphattn.training.parent import follow_parent

    follow_parent()  # before Lightning is imported, which takes seconds
    if command == "predict" and any(argument.partition("=")[0] == "--images" for argument in arguments):
        from graphattn.training.predict_images import run as predict_images

        predict_images(arguments)
    elif command == "leaderboard":
        from graphattn.training import run_leaderboard

        run_leaderboard(arguments)
    else:
        from graphattn.training import run

        run(command, arguments)
    return 0


def _expected(error: Exception) -> int | None:
    """The exit code of an error whose text says enough, or ``None`` for a bug, which deserves its traceback."""
    from graphattn.errors import ArgumentError, ArgumentTypeError, ConfigError, GraphattnError, MissingPackageError

    if isinstance(error, (ArgumentError, ArgumentTypeError, ConfigError, MissingPackageError)):
        return 2
    if isinstance(error, GraphattnError):
        return 1
    if type(error).__name__ == "MisconfigurationException":  # Lightning's own word for a wrong trainer option
        return 2
    return None


def _version() -> str:
    import graphattn

    return graphattn.__version__


if __name__ == "__main__":
    sys.exit(main())
