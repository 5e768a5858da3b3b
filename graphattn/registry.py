"""Names for things that users choose by name: mechanisms, models, data sets, scores."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from graphattn.errors import ArgumentError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to objects, filled by a decorator or by lazy ``"module:attribute"`` entries.

    Lazy entries keep ``list_...()`` and ``--help`` quick: nothing is imported to print a name.

    Args:
        kind: What the entries are ("mechanism", "model", ...), used in error texts.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T | str] = {}

    def add(self, name: str, target: str) -> None:
        """Register ``"module:attribute"`` under ``name``; it is imported at the first :meth:`get`."""
        if ":" not in target:
            raise ArgumentError(f"target must read 'module:attribute', got {target!r}")
        self._insert(name, target)

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers an object under ``name``."""

        def decorate(entry: T) -> T:
            self._insert(name, entry)
            return entry

        return decorate

    def get(self, name: str) -> T:
        """The object registered as ``name``.

        Raises:
            ArgumentError: If there is none; the text lists the names that come closest.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=3)
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(self)}"
            raise ArgumentError(f"unknown {self.kind} {name!r}; {hint}")
        entry: Any = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(importlib.import_module(module), attribute)
            self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def _insert(self, name: str, entry: T | str) -> None:
        if name in self._entries:
            raise ArgumentError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = entry
