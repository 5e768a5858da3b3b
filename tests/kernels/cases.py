"""Random cases of ``csr_attention``: a graph, sizes and options, and the tensors made from them.

A case is made again from its number alone: ``check(random_case(1234), "gather")`` with ``check`` of ``judge.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn import TokenGraph
from graphattn_kernels import Structure, View
from tests.kernels.covering import covering_rows

__all__ = ["OPTIONS", "PER_VARIANT", "VARIANTS", "Case", "Problem", "covering_cases", "lay", "make", "random_case"]

GRAPHS = (
    "sparse",
    "dense",
    "hubs",
    "empty_rows",
    "duplicates",
    "self_loops",
    "one_token",
    "no_edges",
    "no_tokens",
    "one_source",
    "batch",
    "path",
)

# Every value of every option; a case has one of each. The first value of each is the plainest.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "graph": GRAPHS,
    "widths": ((4, 4), (1, 1), (2, 3), (5, 1), (8, 16), (16, 9), (7, 20), (17, 8), (32, 12), (1, 24)),  # (D, D_v)
    "heads": tuple(range(1, 10)),
    "dtype": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "score": ("dot", "product", "additive", "att"),  # product: dot, and need_product; att: additive with a vector
    "bias": ("none", "heads", "shared", "masked"),  # [E, H]; [E, 1]; [E, H] with some -inf
    "layout": ("contiguous", "packed", "odd", "permuted", "expanded"),
    "needs": ("all", "tokens", "q", "v", "edges"),  # which inputs need a gradient
    "slopes": ("all", "first", "last"),  # which outputs get a gradient
    "sides": ("square", "bipartite", "transposed"),
    "dropout_p": (0.0, 0.1, 0.6),
    "gate": (False, True),
    "clamp": (False, True),
    "scale": (None, 0.3),
    "split": (False, True),  # cut the work at a few edges
    "order": ("callers", "sorted"),
    "index": (torch.int32, torch.int64),
}

VARIANTS, PER_VARIANT = 200, 50
"""The 10,000: a Triton kernel is compiled for a variant (all options but the graph), and each meets 50 graphs."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of ``csr_attention``: see :data:`OPTIONS` for the fields."""

    number: int
    size: int
    """Tokens, about."""
    graph: str
    widths: tuple[int, int]
    heads: int
    dtype: torch.dtype
    score: str
    bias: str
    layout: str
    needs: str
    slopes: str
    sides: str
    dropout_p: float
    gate: bool
    clamp: bool
    scale: float | None
    split: bool
    order: str
    index: torch.dtype

    def __str__(self) -> str:
        flags = ["gate"] * self.gate + ["clamp"] * self.clamp + ["split"] * self.split
        named = [self.score, self.layout, self.needs, self.slopes, self.sides, self.order]
        named += [f"{self.bias}_bias"] * (self.bias != "none") + [f"scale{self.scale}"] * (self.scale is not None)
        named += [f"drop{self.dropout_p}"] * (self.dropout_p > 0)
        dtypes = [str(x).removeprefix("torch.") for x in (self.dtype, self.index)]
        sizes = f"H{self.heads}-D{self.widths[0]}x{self.widths[1]}"
        return "-".join([str(self.number), self.graph, sizes, *dtypes, *named, *flags])


# --- choosing cases -------------------------------------------------------------------------------------------


@functools.cache
def _covering() -> list[dict[str, Any]]:
    return covering_rows(OPTIONS)


def covering_cases() -> list[Case]:
    """Tiny cases that together hold every pair of values of two options."""
    return [Case(number=n, size=4, **row) for n, row in enumerate(_covering())]


def random_case(number: int) -> Case:
    """Case ``number`` of ``VARIANTS * PER_VARIANT``.

    The first variants are those of :func:`covering_cases`; in the others channels are drawn from 1 to 256, mostly few,
    every second time a power of two.
    """
    variant = number // PER_VARIANT
    draw = random.Random(f"variant {variant}")
    if variant < len(_covering()):
        row = dict(_covering()[variant])
    else:
        row = {name: draw.choice(values) for name, values in OPTIONS.items()}
        row["widths"] = tuple(draw.choice((2 ** draw.randint(0, 8), round(2 ** draw.uniform(0, 8)))) for _ in range(2))
    draw = random.Random(f"case {number}")
    row["graph"] = GRAPHS[number % len(GRAPHS)]
    # Large graphs with few channels: what has many of both takes long and shows nothing more.
    most = 200_000 / (row["heads"] * max(row["widths"]))
    size = round(min(2 ** (2 + 7 * draw.random() ** 2), max(6.0, most / 8)))
    return Case(number=number, size=size, **row)


# --- making the tensors ---------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """The tensors of a case."""

    case: Case
    structure: Structure
    source: Tensor
    """``[E]`` in the caller's order, as the call sees it."""
    target: Tensor
    tensors: dict[str, Tensor]
    """In float64, of values that the dtype of the case holds."""
    options: dict[str, Any]
    slopes: list[Tensor | None]
    """One for each output, of values that the dtype of the case holds."""
    positive: Tensor
    """Boolean ``[E, H, D]``: where the LeakyReLU of the additive score has slope 1."""
    inside: Tensor
    """Boolean ``[E, H]``: scores that the clamp leaves alone."""
    groups: int = 1
    """Plain code adds up the edges of a row one after another; in 32 groups its error is far smaller."""

    def to(self, device: str) -> Problem:
        """What the function under test takes, on another device; the rest is for the plain code, on the CPU."""
        structure = (View(*(None if x is None else x.to(device) for x in view)) for view in self.structure)
        return self._replace(
            structure=Structure(*structure),
            tensors={name: x.to(device) for name, x in self.tensors.items()},
            options={name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.options.items()},
            slopes=[None if x is None else x.to(device) for x in self.slopes],
        )

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        """``x[index]``; gradients are added up in groups."""
        copies = x.unsqueeze(1).expand(-1, self.groups, *x.shape[1:]).flatten(0, 1)
        return copies[index * self.groups + self._group()]

    def add(self, rows: Tensor, index: Tensor, size: int) -> Tensor:
        """Sum of the rows of each index, ``[size, ...]``, added up in groups."""
        parts = rows.new_zeros(size * self.groups, *rows.shape[1:])
        parts = parts.index_add(0, index * self.groups + self._group(), rows)
        return parts.unflatten(0, (size, self.groups)).sum(1)

    def _group(self) -> Tensor:
        return torch.arange(self.source.shape[0]) % self.groups

    @property
    def additive(self) -> bool:
        """Whether the score is additive."""
        return "negative_slope" in self.options

    @property
    def scale(self) -> float:
        """Factor on the score."""
        given = self.case.scale
        return (1.0 if self.additive else self.case.widths[0] ** -0.5) if given is None else given

    def sums(self, q: Tensor, k: Tensor, edge_gate: Tensor | None = None) -> Tensor:
        """What stands under the LeakyReLU of the additive score ``[E, H, D]``."""
        total = self.take(q, self.target) + self.take(k, self.source)
        return total if edge_gate is None else total + edge_gate

    def scores(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        edge_bias: Tensor | None = None,
        edge_gate: Tensor | None = None,
        att: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores before the clamp ``[E, H]``, and the product of each channel ``[E, H, D]``.

        Slopes are those of the exact sums: where a derivative jumps, rounding may not decide.
        """
        if self.additive:
            total = self.sums(q, k, edge_gate)
            product = torch.where(self.positive, total, total * self.options["negative_slope"]) * self.scale
        else:
            product = self.take(q, self.target) * self.take(k, self.source) * self.scale
            product = product if edge_gate is None else product * edge_gate
        score = (product if att is None else product * att).sum(-1)
        return score if edge_bias is None else score + edge_bias, product


def make(case: Case) -> Problem:
    """The tensors of a case, on the CPU."""
    for attempt in itertools.count():
        problem = _draw(case, torch.Generator().manual_seed(1000 * case.number + attempt))
        if problem is not None:
            return problem
    raise AssertionError("unreachable")


def _draw(case: Case, rng: torch.Generator) -> Problem | None:
    """``None`` where a derivative jumps so close to one of the values that rounding decides."""
    graph = _graph(case, rng)
    structure, (source, target) = graph.structure, graph.edge_index
    if case.sides == "transposed":
        structure, source, target = structure.T, target, source
    structure = Structure(*(type(v)(*(None if x is None else x.to(case.index) for x in v)) for v in structure))
    targets, sources, edges = structure.num_targets, structure.num_sources, structure.num_edges
    heads, (d, d_v) = case.heads, case.widths

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(case.dtype).double()

    tensors = {"q": normal(targets, heads, d), "k": normal(sources, heads, d), "v": normal(sources, heads, d_v)}
    if case.bias != "none":
        tensors["edge_bias"] = normal(edges, 1 if case.bias == "shared" else heads)
    if case.bias == "masked":
        masked = torch.rand(edges, heads, generator=rng) < 0.3
        masked |= torch.rand(targets, generator=rng)[target].unsqueeze(1) < 0.2  # whole rows, too
        tensors["edge_bias"].masked_fill_(masked, float("-inf"))
    if case.gate:
        tensors["edge_gate"] = normal(edges, heads, d)
    if case.score == "att":
        tensors["att"] = normal(heads, d)
    options: dict[str, Any] = {"scale": case.scale, "need_product": case.score == "product"}
    if case.score in ("additive", "att"):
        options["negative_slope"] = 0.2
    if case.dropout_p:
        seed = torch.randint(-(2**62), 2**62, (2,), generator=rng)
        options |= {"dropout_p": case.dropout_p, "dropout_seed": seed}

    shapes = [(targets, heads, d_v), (targets, heads)] + [(edges, heads, d)] * (case.score == "product")
    chosen = {"all": slice(None), "first": slice(1), "last": slice(-1, None)}[case.slopes]
    slopes: list[Tensor | None] = [None] * len(shapes)
    slopes[chosen] = [normal(*shape) for shape in shapes[chosen]]

    yes = torch.ones((), dtype=torch.bool)
    problem = Problem(case, structure, source, target, tensors, options, slopes, yes, yes)
    laid = {name: lay(x, case.layout) for name, x in tensors.items()}
    total = problem.sums(laid["q"], laid["k"], laid.get("edge_gate"))
    # With a gate, the sum under the LeakyReLU has two additions, and rounding may change its sign.
    if problem.additive and ((total != 0) & (total.abs() < 1e-6)).any():
        return None
    problem = problem._replace(positive=total > 0)
    if case.clamp:
        scores, _ = problem.scores(**laid)
        options["clamp"] = _clamp(scores)
        problem = problem._replace(inside=scores.abs() <= options["clamp"])
    return problem


def _graph(case: Case, rng: torch.Generator) -> TokenGraph:
    def pick(high: int, count: int) -> Tensor:
        return torch.randint(max(high, 1), (count if high else 0,), generator=rng)

    kind, n = case.graph, case.size
    targets = {"one_token": 1, "no_tokens": 0}.get(kind, n)
    sources = targets if case.sides == "square" else {"one_source": 1}.get(kind, targets + 3)
    if kind == "dense":
        target, source = (torch.rand(min(targets, 60), min(sources, 60), generator=rng) < 0.8).nonzero(as_tuple=True)
    elif kind == "path":
        target = torch.arange(min(targets, sources))
        source = (target - 1).clamp(min=0)
    elif kind == "batch":  # every member complete
        member = torch.arange(0, min(targets, sources), 3)
        target = (member[:, None] + torch.tensor([0, 0, 1, 1])).flatten()
        source = (member[:, None] + torch.tensor([0, 1, 0, 1])).flatten()
        inside = (target < targets) & (source < sources)
        target, source = target[inside], source[inside]
    else:
        count = {"no_edges": 0, "no_tokens": 0, "one_token": 3, "hubs": n}.get(kind, 2 * n)
        target, source = pick(targets, count), pick(sources, count)
    if kind == "hubs":  # target 2 reads, and source 1 is read by, twice as many as there are other edges
        target = torch.cat([target, torch.full((2 * n,), 2), pick(targets, 2 * n)])
        source = torch.cat([source, pick(sources, 2 * n), torch.full((2 * n,), 1)])
    elif kind == "empty_rows":
        target, source = target // 2 * 2 % max(targets - 1, 1), source // 3 * 3
    elif kind == "duplicates":
        target, source = target.repeat(2), source.repeat(2)
    elif kind == "self_loops":
        loops = torch.arange(min(targets, sources))
        target, source = torch.cat([target, loops]), torch.cat([source, loops])
    elif kind == "one_source":
        source = torch.zeros_like(target)
    shuffle = torch.randperm(target.shape[0], generator=rng)
    edges = torch.stack([source[shuffle], target[shuffle]])
    graph = TokenGraph.from_edge_index(edges, num_targets=targets, num_sources=sources)
    if case.order == "callers":
        return graph
    return TokenGraph.from_csr(graph.rowptr, graph.col, num_sources=sources)


def _clamp(scores: Tensor) -> float:
    """In the middle of the widest gap between the middle half of the magnitudes."""
    magnitude = scores[scores.isfinite()].abs().sort().values
    low, high = len(magnitude) // 4, max(len(magnitude) * 3 // 4, len(magnitude) // 4 + 2)
    middle = magnitude[low:high]
    if len(middle) < 2 or middle[-1] == middle[0]:
        return float(magnitude.max()) + 1.0 if len(magnitude) else 1.0
    gap = int(middle.diff().argmax())
    return float(middle[gap] + middle[gap + 1]) / 2


def lay(x: Tensor, layout: str) -> Tensor:
    """The same numbers (``expanded``: those of the first column for all) in another layout of memory.

    ``packed``: rows are parts of wider ones, as in a projection to q, k and v; ``odd``: so that no row is aligned;
    ``permuted``: channels first; ``expanded``: one for all heads.
    """
    if layout in ("packed", "odd"):
        width = math.prod(x.shape[1:])
        left, right = (width, width) if layout == "packed" else (1, 2 + width % 2)
        wide = torch.nn.functional.pad(x.reshape(x.shape[0], width), (left, right), value=float("nan"))
        return wide[:, left : left + width].unflatten(1, x.shape[1:])
    if layout == "permuted":
        dims = tuple(reversed(range(x.dim())))
        return x.permute(dims).contiguous().permute(dims)
    return x[:, :1].expand_as(x) if layout == "expanded" else x
