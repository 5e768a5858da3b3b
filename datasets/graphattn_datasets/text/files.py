"""Reading texts."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from graphattn.errors import DataError
from graphattn_datasets.paths import DATA_VARIABLE, atomic_path, data_folder, data_setting, say

__all__ = ["read_python_docs", "read_tinyshakespeare"]

_ADDRESS = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
_MD5 = "6fb458f1232090904fb40fe944165e91"
_SECONDS = 20.0  # to wait for an answer


def read_tinyshakespeare(root: Path) -> str:
    """The text, from ``$GRAPHATTN_DATA/tinyshakespeare/input.txt`` if it is there, else downloaded.

    Args:
        root: Where the download goes.

    Raises:
        DataError: If it is missing and cannot be downloaded, or is another text.
    """
    shared = data_folder()
    places = [root / "input.txt"] if shared is None else [shared / "tinyshakespeare" / "input.txt", root / "input.txt"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        path = root / "input.txt"
        say(f"downloading {_ADDRESS} to {path}")
        try:
            with atomic_path(path) as temporary, urllib.request.urlopen(_ADDRESS, timeout=_SECONDS) as answer:
                temporary.write_bytes(answer.read())
        except OSError as error:
            where = " or ".join([str(path), f"${DATA_VARIABLE}/tinyshakespeare/input.txt"])
            raise DataError(
                f"cannot get {_ADDRESS} ({type(error).__name__}: {error})\n  put it into: {where} ({data_setting()})"
            ) from None
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != _MD5:
        raise DataError(f"{path} is another text or truncated: its MD5 is {digest}, expected {_MD5}")
    return content.decode()


def read_python_docs(root: Path) -> str:
    """The documentation strings of the standard library's own modules, file by file in the order of their names.

    Sources are parsed, nothing is imported. Characters beyond ASCII become ``?``.

    Args:
        root: Where the text is kept, for each version of Python: parsing takes seconds.

    Raises:
        DataError: If this Python has no source files.
    """
    kept = root / f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}.txt"
    if kept.is_file():
        return kept.read_text(encoding="ascii")
    folder = Path(sysconfig.get_path("stdlib"))
    parts = [text for path in _sources(folder) for text in _docs(path)]
    if not parts:
        raise DataError(f"python_docs needs the source files of the standard library, and {folder} has none")
    text = "\n\n".join(parts) + "\n"
    with atomic_path(kept) as temporary:
        temporary.write_bytes(text.encode("ascii"))
    return text


def _sources(folder: Path) -> Iterator[Path]:
    for name in sorted(sys.stdlib_module_names):
        package = folder / name
        if (folder / f"{name}.py").is_file():
            yield folder / f"{name}.py"
        elif (package / "__init__.py").is_file():
            inside = (path for path in package.rglob("*.py") if not {"test", "tests"} & set(path.parts))
            yield from sorted(inside)


def _docs(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates, and files that test the parser
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and text.strip():
                yield "".join(c if c.isascii() and (c.isprintable() or c == "\n") else "?" for c in text.strip())
