"""Graphs of edge lists that a layer has seen before, so that layers and steps sort each once.

A layer that is called with the same ``edge_index`` in every step, or after another layer of the same model, would
sort the same edges again; PyG's layers need no order, so their users have no object to keep it in.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from graphattn.graph import TokenGraph

__all__ = ["remembered"]

_T = TypeVar("_T")
_MOST = 64  # relations of a heterogeneous graph, or batches that somebody holds on to
_COMPARED = 1 << 22  # numbers of a tensor that are compared: those of a buffer that a loader fills again and again

# By the identities of the objects and what else the value was made from: weak references to the objects, which tell
# whether an identity has changed hands, the versions and contents that they had, and the value.
_KNOWN: OrderedDict[tuple[Any, ...], tuple[tuple[Any, ...], tuple[int, ...], list[Tensor | None], Any]] = OrderedDict()


def remembered(objects: tuple[Any, ...], key: tuple[Any, ...], make: Callable[[], _T]) -> _T:
    """``make()``, or what it gave for the same objects before.

    Args:
        objects: What the value is made from; only of plain tensors and token graphs it is remembered. It is made again
            when one of them was changed in place, and forgotten with the first that is deleted. Writes that PyTorch
            does not count (:attr:`Tensor._version`), through NumPy or ``.data``, are seen on a CPU, in tensors of up to
            4 million numbers.
        key: Whatever else it depends on, hashable.
        make: Makes it.
    """
    if not _may_look_up(objects):
        return make()
    inference = torch.is_inference_mode_enabled()  # makes tensors that training cannot use, but can use any
    at = (*map(id, objects), *key, inference)
    versions = tuple(x._version if isinstance(x, Tensor) else 0 for x in objects)
    for place in (at, (*at[:-1], False))[: 1 + inference]:
        known = _KNOWN.get(place)
        if known is not None and known[1] == versions and _are_the_same(objects, known[0], known[2]):
            return known[3]
    value = make()
    if _is_capturing():
        return value  # is in memory that holds it after a replay only

    def forget(_: Any, known: Any = _KNOWN) -> None:  # bound: at the end of Python, the global is gone
        known.pop(at, None)

    _KNOWN[at] = (tuple(weakref.ref(x, forget) for x in objects), versions, [_content(x) for x in objects], value)
    if len(_KNOWN) > _MOST:
        _KNOWN.popitem(last=False)
    return value


def _content(x: Any) -> Tensor | None:
    """A copy of what may change unseen; elsewhere than on a CPU, to look would be to wait for the device."""
    return x.clone() if isinstance(x, Tensor) and x.device.type == "cpu" and x.numel() <= _COMPARED else None


def _are_the_same(objects: tuple[Any, ...], references: tuple[Any, ...], contents: list[Tensor | None]) -> bool:
    pairs = zip(objects, references, contents, strict=True)
    return all(reference() is x and (was is None or torch.equal(x, was)) for x, reference, was in pairs)


def _may_look_up(objects: tuple[Any, ...]) -> bool:
    if torch.compiler.is_compiling():
        return False
    tensors = [x for x in objects if not isinstance(x, TokenGraph)]
    if any(type(x) is not Tensor or x.layout != torch.strided or x.is_inference() for x in tensors):
        return False
    # A captured graph is replayed on new contents of the same memory.
    return not (tensors and _is_capturing())


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
