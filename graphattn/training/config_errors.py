"""Short texts for what a configuration gets wrong, from the configuration parser's long ones."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from graphattn.errors import ConfigError, GraphattnError

__all__ = ["explain", "own_errors"]

_FRAME = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>"
    r"|Not a valid subclass of|Subclass types expect|a class path \(str\)|a dict with"
)
_LOST_NULL = re.compile(r"Given value type: <class 'str'>\s+Given value: None\s")
_KEY = re.compile(r'Parser key "([^"]+)":\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_OPTION = re.compile(r"(?:Option '([^']+)' is not accepted|does not accept option '([^']+)')")
_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_UNRECOGNIZED = re.compile(r"[Uu]nrecognized arguments: --([\w.]+)")


def explain(error: BaseException, known_keys: Iterable[str] = ()) -> str:
    """Where the error is, what it is, and which known names come close.

    Args:
        error: What the parser raised; its text nests one frame for each level of the configuration.
        known_keys: Dotted keys that the configuration may have.

    Returns:
        One or a few lines.
    """
    where: list[str] = []
    what: list[str] = []
    class_path = None
    for line in str(error).splitlines():
        line = line.strip().removeprefix("- ")
        if match := _KEY.match(line):
            where.append(match[1])
            line = match[2]
        elif match := _CLASS.match(line):
            class_path = match[1]
            where.append(class_path)
            continue
        if line and not _FRAME.match(line) and line not in what:
            what.append(line)
    text = "; ".join(what) or str(error)
    if _LOST_NULL.search(str(error)):
        text += ". (The parser cannot read null this deep on the command line; write it in a second --config file)"
    if "arguments are required" in text:
        text += " (usually given by --config x.yaml)"
    place = " > ".join(dict.fromkeys(where))
    near = _near(text, class_path, list(known_keys))
    return "configuration: " + (f"{place}: " if place else "") + text + (f". Did you mean {near}?" if near else "")


@contextmanager
def own_errors() -> Iterator[None]:
    """Let an error of ours out as it was raised: the parser tries every type that an argument may have, and wraps what
    the constructors say in an error of its own; in lists, of which only the text is left."""
    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, GraphattnError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        if str(error).startswith("Does not validate against"):
            raise ConfigError(explain(error)) from error
        raise


def _near(text: str, class_path: str | None, known_keys: list[str]) -> str:
    candidates: Iterable[str] = ()
    if match := _ATTRIBUTE.search(text):
        wanted, candidates = match[2], _names_in(match[1])
    elif match := _OPTION.search(text):
        wanted = match[1] or match[2]
        parts = {part for key in known_keys for part in key.split(".")}
        candidates = _arguments_of(class_path) if class_path else parts
    elif match := _UNRECOGNIZED.search(text):
        wanted, candidates = match[1], known_keys
    else:
        return ""
    near = difflib.get_close_matches(wanted, sorted(set(candidates) - {wanted}), n=2)  # a base class may take it
    return " or ".join(map(repr, near))


def _names_in(module: str) -> list[str]:
    try:
        return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]
    except ImportError:
        return []


def _arguments_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
        makers = [vars(cls)["__init__"] for cls in inspect.getmro(found) if "__init__" in vars(cls)]
        return [argument for make in makers for argument in inspect.signature(make).parameters]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
