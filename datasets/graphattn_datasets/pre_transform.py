"""One ``pre_transform`` over all graphs of a data set, fast where it is an encoding of graphattn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from torch_geometric.data import Data
from torch_geometric.transforms import Compose
from tqdm import tqdm

from graphattn.encoding import NodeEncoding, precompute

__all__ = ["apply_pre_transform"]

_CHUNK = 256  # graphs taken together, which bounds the memory
_QUIET_SECONDS = 2.0


def apply_pre_transform(transform: Callable[[Any], Any], graphs: Sequence[Data], title: str) -> list[Data]:
    """``[transform(graph) for graph in graphs]``, with the encodings of many graphs in one go.

    Many graphs are taken together by every :class:`~graphattn.encoding.NodeEncoding`, alone or in PyG's
    ``Compose``, and one graph after another by everything else. Work that takes long shows a bar on a terminal.

    Args:
        transform: A ``pre_transform``.
        graphs: What it is applied to.
        title: Name of the graphs, shown by the bar.

    Returns:
        What the transform made of each graph. Random numbers that parts of a ``Compose`` draw before and after
        an encoding, from the same generator, come in another order than graph by graph.
    """
    runs = [(together, Compose(list(run))) for together, run in groupby(_steps(transform), _takes_many)]
    size = _CHUNK if any(together for together, _ in runs) else 1
    done: list[Data] = []
    # disable=None: no bar where standard error is not a terminal.
    look: dict[str, Any] = {"desc": f"pre_transform of {title}", "unit": "graph", "delay": _QUIET_SECONDS}
    with tqdm(total=len(graphs), disable=None, **look) as bar:
        for start in range(0, len(graphs), size):
            chunk = list(graphs[start : start + size])
            count = len(chunk)
            for together, run in runs:
                chunk = precompute(chunk, run) if together else [run(graph) for graph in chunk]
            done += chunk
            bar.update(count)
    return done


def _steps(transform: Any) -> Iterator[Callable[[Any], Any]]:
    if type(transform) is Compose:  # a subclass may do something else with its parts
        for part in transform.transforms:
            yield from _steps(part)
    else:
        yield transform


def _takes_many(transform: Callable[[Any], Any]) -> bool:
    kind: Any = type(transform)
    if not isinstance(transform, NodeEncoding):
        return False
    return kind.forward is NodeEncoding.forward and kind.__call__ is NodeEncoding.__call__
