"""The encodings as PyG transforms: usable as ``pre_transform``, as ``transform``, on a ``Batch``, or on a
whole data set at once with :func:`precompute`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphattn.encoding._structure import check_choice, check_count
from graphattn.encoding.degree import degree_encoding
from graphattn.encoding.hop import hop_pairs
from graphattn.encoding.laplacian import laplacian_pe
from graphattn.encoding.random_walk import random_walk_pe
from graphattn.encoding.sign import flip_signs
from graphattn.encoding.wl import WLVocabulary, wl_ids
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.optional import require

if TYPE_CHECKING:
    from torch_geometric.data import Data
    from torch_geometric.transforms import BaseTransform
else:
    BaseTransform = require(
        "torch_geometric.transforms", extra="pyg", purpose="graphattn.encoding.transforms"
    ).BaseTransform

__all__ = [
    "AddDegree",
    "AddHopDistance",
    "AddLaplacianPE",
    "AddRandomWalkPE",
    "AddWL",
    "NodeEncoding",
    "SignFlip",
]


class _Transform(BaseTransform):
    """Arguments are kept under their names, and ``repr`` shows them all (caches are named by it)."""

    def __repr__(self) -> str:
        names = inspect.signature(type(self).__init__).parameters
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names if name != "self")
        return f"{type(self).__name__}({arguments})"


class NodeEncoding(_Transform):
    """Base of transforms that compute one row for each node from the structure alone.

    A subclass keeps its arguments as attributes of the same names, ``attr_name`` among them, and defines
    :meth:`encode`; :func:`graphattn.encoding.precompute` then takes many graphs together.
    """

    attr_name: str | None

    def encode(self, graph: TokenGraph) -> Tensor:
        """Rows ``[N, ...]`` of one graph or a batch."""
        raise NotImplementedError

    def forward(self, data: Data) -> Data:
        """``data`` with the encoding."""
        return self.store(data, self.encode(token_graph(data, type(self).__name__)))

    def store(self, data: Data, value: Tensor) -> Data:
        """Put rows where ``attr_name`` says; ``None`` appends them to ``x``."""
        if self.attr_name is not None:
            data[self.attr_name] = value
        elif data.x is None:
            data.x = value
        else:
            x = data.x[:, None] if data.x.dim() == 1 else data.x
            columns = value[:, None] if value.dim() == 1 else value
            if not x.is_floating_point() and columns.is_floating_point():
                raise ArgumentError(
                    f"attr_name=None appends the encoding to x, but x holds ids ({x.dtype}) that it cannot "
                    'stand beside; give it a name, attr_name="pe" say'
                )
            same = columns.to(x.dtype)
            if not columns.is_floating_point() and not torch.equal(same.to(columns.dtype), columns):
                raise ArgumentError(
                    f"attr_name=None appends the encoding to x, but x ({x.dtype}) cannot hold its ids exactly; give it "
                    f'a name, attr_name="pe" say'
                )
            data.x = torch.cat([x, same], dim=-1)
        return data


class AddLaplacianPE(NodeEncoding):
    """Add Laplacian eigenvectors (:func:`graphattn.encoding.laplacian_pe`) as a node attribute.

    Args:
        k: Number of columns.
        attr_name: Name of the attribute; ``None``: append to ``x``.
        normalization: See :func:`~graphattn.encoding.laplacian_pe`.
        sign: See :func:`~graphattn.encoding.laplacian_pe`. Random signs are drawn here once and stay; for new
            ones in each training step keep ``"fixed"`` and use :class:`SignFlip`.
        per_component: See :func:`~graphattn.encoding.laplacian_pe`.
        directed: See :func:`~graphattn.encoding.laplacian_pe`.
        solver: See :func:`~graphattn.encoding.laplacian_pe`.
        eigenvalues: Also add ``<attr_name>_eigenvalues`` ``[N, k]`` and ``<attr_name>_group`` ``[N, k]``.
        seed: Of random signs, which follow one another from graph to graph.
    """

    def __init__(
        self,
        k: int,
        attr_name: str | None = "pe",
        *,
        normalization: str | None = "sym",
        sign: str = "fixed",
        per_component: bool = True,
        directed: str = "symmetrize",
        solver: str = "auto",
        eigenvalues: bool = False,
        seed: int | None = None,
    ) -> None:
        check_count("k", k)
        check_choice("normalization", normalization, ("sym", "rw", None))
        check_choice("sign", sign, ("fixed", "random", "random_batch", "abs"))
        check_choice("directed", directed, ("symmetrize", "error"))
        check_choice("solver", solver, ("auto", "dense", "sparse"))
        if sign.startswith("random") != (seed is not None):
            raise ArgumentError(f'seed goes with sign="random" or "random_batch", got sign={sign!r}, seed={seed}')
        if eigenvalues and attr_name is None:
            raise ArgumentError("eigenvalues=True needs an attr_name to name them by, got None")
        self.k = k
        self.attr_name = attr_name
        self.normalization = normalization
        self.sign = sign
        self.per_component = per_component
        self.directed = directed
        self.solver = solver
        self.eigenvalues = eigenvalues
        self.seed = seed
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def _options(self) -> dict[str, Any]:
        names = ("normalization", "sign", "per_component", "directed", "solver")
        return {name: getattr(self, name) for name in names} | {"generator": self._generator}

    def encode(self, graph: TokenGraph) -> Tensor:
        if not self.eigenvalues:
            return laplacian_pe(graph, self.k, **self._options())
        found = laplacian_pe(graph, self.k, return_eigenvalues=True, **self._options())
        return torch.stack([found.pe, found.eigenvalues, found.group.to(found.pe.dtype)], dim=1)

    def store(self, data: Data, value: Tensor) -> Data:
        if not self.eigenvalues:
            return super().store(data, value)
        pe, eigenvalues, group = value.unbind(1)
        data[f"{self.attr_name}_eigenvalues"] = eigenvalues
        data[f"{self.attr_name}_group"] = group.long()
        return super().store(data, pe)


class AddRandomWalkPE(NodeEncoding):
    """Add return probabilities of a random walk (:func:`graphattn.encoding.random_walk_pe`) as a node
    attribute.

    Args:
        steps: Number of columns.
        attr_name: Name of the attribute; ``None``: append to ``x``.
    """

    def __init__(self, steps: int, attr_name: str | None = "pe") -> None:
        check_count("steps", steps)
        self.steps = steps
        self.attr_name = attr_name

    def encode(self, graph: TokenGraph) -> Tensor:
        return random_walk_pe(graph, self.steps)


class AddDegree(NodeEncoding):
    """Add degrees as ids (:func:`graphattn.encoding.degree_encoding`) as a node attribute.

    Args:
        attr_name: Name of the attribute; ``None``: append to ``x``.
        direction: ``"in"``, ``"out"`` or ``"both"``.
        max_degree: Larger degrees become this one; default: no limit.
    """

    def __init__(
        self, attr_name: str | None = "degree", *, direction: str = "in", max_degree: int | None = None
    ) -> None:
        check_choice("direction", direction, ("in", "out", "both"))
        if max_degree is not None:
            check_count("max_degree", max_degree, minimum=0)
        self.attr_name = attr_name
        self.direction = direction
        self.max_degree = max_degree

    def encode(self, graph: TokenGraph) -> Tensor:
        return degree_encoding(graph, direction=self.direction, max_degree=self.max_degree)


class AddWL(NodeEncoding):
    """Add Weisfeiler-Leman ids (:func:`graphattn.encoding.wl_ids`) as a node attribute.

    Args:
        attr_name: Name of the attribute; ``None``: append to ``x``.
        rounds: Rounds of refinement.
        mode: ``"canonical"`` or ``"published"``.
        num_ids: Canonical colours modulo this number.
        vocabulary: Canonical colours looked up in this table, made by :meth:`WLVocabulary.fit` on the
            training graphs. With neither, the attribute holds the 63-bit colours themselves.
    """

    def __init__(
        self,
        attr_name: str | None = "wl",
        *,
        rounds: int = 2,
        mode: str = "canonical",
        num_ids: int | None = None,
        vocabulary: WLVocabulary | None = None,
    ) -> None:
        check_count("rounds", rounds)
        check_choice("mode", mode, ("canonical", "published"))
        if sum((mode == "published", num_ids is not None, vocabulary is not None)) > 1:
            raise ArgumentError('give one of num_ids and vocabulary, and neither with mode="published"')
        if num_ids is not None:
            check_count("num_ids", num_ids)
        self.attr_name = attr_name
        self.rounds = rounds
        self.mode = mode
        self.num_ids = num_ids
        self.vocabulary = vocabulary

    def encode(self, graph: TokenGraph) -> Tensor:
        ids = wl_ids(graph, self.rounds, mode=self.mode, num_ids=self.num_ids)
        return ids if self.vocabulary is None else self.vocabulary(ids)


class AddHopDistance(_Transform):
    """Add all pairs of nodes and their hop distances (:func:`graphattn.encoding.hop_pairs`).

    The pairs are ``<attr_name>_index`` ``[2, P]``, which PyG shifts like ``edge_index`` when it makes a
    batch, and ``<attr_name>_distance`` ``[P]``.

    Args:
        max_distance: Distances are exact up to this one; ``max_distance + 1`` stands for more and for
            unreachable.
        attr_name: Beginning of the names of both attributes.
        reachable_only: Only pairs at most ``max_distance`` apart.
    """

    def __init__(self, max_distance: int, attr_name: str = "hop", *, reachable_only: bool = False) -> None:
        check_count("max_distance", max_distance)
        self.max_distance = max_distance
        self.attr_name = attr_name
        self.reachable_only = reachable_only

    def forward(self, data: Data) -> Data:
        """``data`` with the pairs."""
        graph = token_graph(data, type(self).__name__)
        found = hop_pairs(graph, self.max_distance, reachable_only=self.reachable_only)
        data[f"{self.attr_name}_index"] = found.edge_index
        data[f"{self.attr_name}_distance"] = found.distance
        return data


class SignFlip(_Transform):
    """Flip the signs of an encoding's columns at random (:func:`graphattn.encoding.flip_signs`): for training
    only.

    On a ``Batch`` or on single graphs, where ``per="batch"`` and ``per="graph"`` are the same.

    Args:
        attr_name: The encoding.
        per: ``"graph"``: signs for each graph of a batch; ``"batch"``: the same signs for all (as published).
        seed: Of signs of its own (in a DataLoader's worker, mixed with the worker's). Default: torch's
            generator for the CPU, which ``torch.manual_seed`` and the workers seed, as for dropout.
    """

    def __init__(self, attr_name: str = "pe", *, per: str = "graph", seed: int | None = None) -> None:
        check_choice("per", per, ("graph", "batch"))
        self.attr_name = attr_name
        self.per = per
        self.seed = seed
        self._worker: int | None = None
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)

    def _draws(self) -> torch.Generator | None:
        # Every worker gets a copy of this object: without its own seed each would draw the same signs.
        worker = torch.utils.data.get_worker_info()
        if self.seed is not None and worker is not None and worker.seed != self._worker:
            self._worker = worker.seed
            self._generator = torch.Generator().manual_seed((self.seed ^ worker.seed) & (2**63 - 1))
        return self._generator

    def forward(self, data: Data) -> Data:
        """``data`` with new signs."""
        pe = getattr(data, self.attr_name, None)
        if pe is None:
            raise ArgumentError(
                f"data has no attribute {self.attr_name!r} whose signs could be flipped; add it first, with "
                f"AddLaplacianPE(k, attr_name={self.attr_name!r}) as pre_transform"
            )
        data[self.attr_name] = flip_signs(pe, self.per, ptr=getattr(data, "ptr", None), generator=self._draws())
        return data


def token_graph(data: Any, who: str) -> TokenGraph:
    need_data(data, who)
    return TokenGraph.from_pyg(data)


def need_data(data: Any, who: str) -> None:
    from torch_geometric.data import Data

    if not isinstance(data, Data):
        raise ArgumentTypeError(
            f"{who} needs a homogeneous PyG Data or Batch, got {type(data).__name__}; for a HeteroData "
            "encode data.to_homogeneous()"
        )
