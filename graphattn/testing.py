"""Helpers for tests of graphattn and of code built on it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.score import Score

__all__ = [
    "GRAPH_KINDS",
    "assert_backends_equal",
    "assert_within_budget",
    "check_mechanism",
    "check_score",
    "eager_attention",
    "random_graph",
    "require_or_skip",
    "required_packages",
]

# The extras by the module that each is about; other names stand for themselves.
_MODULES = {
    "pyg": "torch_geometric",
    "hf": "transformers",
    "nx": "networkx",
    "train": "lightning",
    "scatter": "torch_scatter",
}


def required_packages() -> set[str]:
    """The names listed in the environment variable ``GRAPHATTN_REQUIRE`` (``"pyg,dgl"``, say).

    A test may not be skipped for want of one of these.
    """
    return {name.strip() for name in os.environ.get("GRAPHATTN_REQUIRE", "").split(",") if name.strip()}


def module_name(name: str) -> str:
    """The module behind the name of an extra: ``"pyg"`` -> ``"torch_geometric"``."""
    return _MODULES.get(name, name)


def require_or_skip(name: str) -> ModuleType:
    """Import an optional package for a test, or skip the test; fail where ``GRAPHATTN_REQUIRE`` lists it.

    Args:
        name: An extra (``"pyg"``, ``"hf"``, ``"nx"``, ``"train"``, ``"scatter"``) or the name of a module.

    Returns:
        The module.
    """
    import pytest

    module = module_name(name)
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken package raises anything: OSError, AttributeError, ...
        reason = f"{module} cannot be imported ({type(error).__name__}: {error})"
    if required_packages() & {name, module}:
        pytest.fail(f"{reason}, and GRAPHATTN_REQUIRE lists it", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


# --- graphs ---------------------------------------------------------------------------------------------------

GRAPH_KINDS = (
    "sparse",
    "dense",
    "hub",
    "empty_rows",
    "duplicates",
    "self_loops",
    "one_token",
    "no_edges",
    "batch",
)
"""What :func:`random_graph` can make: together, the shapes of graph that break attention kernels."""


def random_graph(
    seed: int = 0,
    kind: str = "sparse",
    *,
    bipartite: bool = False,
    device: torch.device | str | None = None,
) -> TokenGraph:
    """A small random graph whose edges are in random order.

    Args:
        seed: The same seed makes the same graph.
        kind: One of :data:`GRAPH_KINDS`. ``"hub"`` has a target that reads every source and a source that every
            target reads; in ``"empty_rows"`` no more than every second target reads, the last never; in
            ``"duplicates"`` edges come once to three times; ``"batch"`` is a ragged batch, one of whose members has a
            single token and one no edge.
        bipartite: Make the number of sources differ from the number of targets.
        device: Where the graph lives; default: the CPU.

    Raises:
        ArgumentError: If there is no such kind.
    """
    if kind not in GRAPH_KINDS:
        raise ArgumentError(f"kind must be one of {GRAPH_KINDS}, got {kind!r}")
    random = torch.Generator().manual_seed(seed)
    target_ptr: Tensor | None = None
    source_ptr: Tensor | None = None
    if kind == "batch":
        target_sizes = [5, 1, 4, 3]
        source_sizes = [size + 2 * bipartite for size in target_sizes]
        blocks = [torch.rand(t, s, generator=random) < 0.5 for t, s in zip(target_sizes, source_sizes, strict=True)]
        blocks[2].zero_()
        mask = torch.block_diag(*(block.float() for block in blocks)) > 0
        target_ptr, source_ptr = (
            torch.tensor([0, *sizes]).cumsum(0).to(device) for sizes in (target_sizes, source_sizes)
        )
    else:
        targets = 1 if kind == "one_token" else int(torch.randint(6, 11, (), generator=random))
        density = {"dense": 0.9, "no_edges": 0.0, "one_token": 1.0}.get(kind, 0.3)
        mask = torch.rand(targets, targets + 3 * bipartite, generator=random) < density
    if kind == "hub":
        mask[2, :], mask[:, 1] = True, True
    if kind == "empty_rows":
        mask[1::2], mask[-1] = False, False
        mask[2, 0] = True
    if kind == "self_loops":
        mask.fill_diagonal_(True)
    target, source = mask.nonzero(as_tuple=True)
    if kind == "duplicates":
        times = torch.randint(1, 4, source.shape, generator=random)
        target, source = target.repeat_interleave(times), source.repeat_interleave(times)
    order = torch.randperm(source.shape[0], generator=random)
    return TokenGraph.from_edge_index(
        torch.stack([source[order], target[order]]).to(device),
        num_targets=mask.shape[0],
        num_sources=mask.shape[1],
        target_ptr=target_ptr,
        source_ptr=source_ptr,
    )


# --- attention ------------------------------------------------------------------------------------------------


def eager_attention(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    edge_bias: Tensor | None = None,
    edge_gate: Tensor | None = None,
    scale: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Dot-product attention as one would write it by hand: plain indexing, every step in the dtype of the inputs.

    Independent of the library's kernels, so it serves as an oracle in float64 and as the measure of what rounding
    does in a lower precision (see :func:`assert_within_budget`).

    Args:
        graph: A graph without leading dimensions.
        q: ``[T, H, D]``.
        k: ``[S, H, D]``.
        v: ``[S, H, D_v]``.
        edge_bias: ``[E, H]``.
        edge_gate: ``[E, H, D]``.
        scale: Default ``D ** -0.5``.
        clamp: Bound on the score.

    Returns:
        ``[T, H, D_v]``.
    """
    source, target = graph.edge_index
    product = q[target] * k[source]
    if edge_gate is not None:
        product = product * edge_gate
    score = product.sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if edge_bias is not None:
        score = score + edge_bias
    if clamp is not None:
        score = score.clamp(-clamp, clamp)
    index = target[:, None].expand_as(score)
    top = score.new_zeros(q.shape[:2]).scatter_reduce(0, index, score.detach(), "amax", include_self=False)
    weight = (score - top[target]).exp()
    total = torch.zeros_like(top).index_add(0, target, weight)
    weight = weight / total[target]
    return v.new_zeros(q.shape[0], *v.shape[1:]).index_add(0, target, weight.unsqueeze(-1) * v[source])


# --- assertions -----------------------------------------------------------------------------------------------


def assert_within_budget(
    actual: Tensor, eager: Tensor, exact: Tensor, *, factor: float = 2.0, what: str = "result"
) -> None:
    """Assert that a result in low precision is about as good as a plain run in the same precision.

    Its largest error against float64 may be ``factor`` times that of the plain run, plus a band of two roundings
    of the largest value (where the plain run happens to hit the exact value).

    Args:
        actual: What is tested, in low precision.
        eager: The plain run on the same inputs in the same precision (:func:`eager_attention`, say).
        exact: The plain run in float64 on the same inputs.
        factor: How many times the plain run's error is allowed.
        what: Named in the error text.

    Raises:
        AssertionError: If shapes or dtypes differ, values are not finite, or the error is larger.
    """
    assert actual.shape == exact.shape, f"{what}: shape {list(actual.shape)}, expected {list(exact.shape)}"
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, expected {eager.dtype}"
    assert bool(actual.isfinite().all()), f"{what}: not finite"
    if not exact.numel():
        return
    error = (actual.double() - exact).abs().max().item()
    plain = (eager.double() - exact).abs().max().item()
    band = 2 * torch.finfo(actual.dtype).eps * exact.abs().max().item()
    assert error <= factor * plain + band, (
        f"{what}: error {error:.3g} exceeds {factor:g} x {plain:.3g} (plain run) + {band:.3g} (rounding)"
    )


def assert_backends_equal(
    function: Callable[..., Any],
    *inputs: Tensor | None,
    parameters: Iterable[Tensor] = (),
    backend: str = "gather",
    tolerance: float = 1e-12,
) -> None:
    """Assert that a backend equals ``reference`` in value and in the gradient of every floating input.

    Args:
        function: Called as ``function(*inputs, backend=name)``; returns a tensor or a tuple with tensors.
        *inputs: float64 tensors (``None`` is passed on).
        parameters: More tensors whose gradients are compared, which the function already holds.
        backend: The backend to test.
        tolerance: Absolute and relative.

    Raises:
        AssertionError: If a value or a gradient differs.
    """
    held = list(parameters)
    results = [_value_and_gradients(function, inputs, held, name) for name in (backend, "reference")]
    for kind, got, expected in zip(("output", "gradient of input"), *results, strict=True):
        for n, (g, e) in enumerate(zip(got, expected, strict=True)):
            _close(g, e, f"{kind} {n}", tolerance)


def _value_and_gradients(
    function: Callable[..., Any], inputs: tuple[Tensor | None, ...], held: list[Tensor], backend: str
) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [x if x is None else x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    result = function(*leaves, backend=backend)
    outputs = [y for y in (result if isinstance(result, tuple) else (result,)) if y is not None]
    random = torch.Generator().manual_seed(0)
    slopes = [torch.randn(y.shape, dtype=y.dtype, generator=random).to(y.device) for y in outputs]
    wanted = [x for x in leaves if x is not None and x.requires_grad] + held
    gradients = torch.autograd.grad(outputs, wanted, slopes, allow_unused=True, materialize_grads=True)
    return [y.detach() for y in outputs], list(gradients)


def check_score(score: Score, *, heads: int = 2, channels: int = 4, edge_channels: int | None = None) -> None:
    """Run a score of your own through :func:`graphattn.attend` on many graphs, in float64.

    Backends must agree in value and gradient (parameters included), targets without an edge get 0, and the order of the
    edges must not matter.

    Args:
        score: A :class:`~graphattn.score.Score`; it is converted to float64 in place.
        heads: H.
        channels: D of queries, keys and values.
        edge_channels: Channels of the edge rows handed to the score; ``None``: no edge rows.

    Raises:
        AssertionError: If one of these does not hold.
    """
    from graphattn.attention import attend

    score.double()
    for seed, kind in enumerate(GRAPH_KINDS):
        graph = random_graph(seed, kind, bipartite=bool(seed % 2))
        q, k, v, edge = _tokens(graph, heads, channels, edge_channels, seed)

        def run(
            q: Tensor, k: Tensor, v: Tensor, edge: Tensor | None, *, backend: str, graph: TokenGraph = graph
        ) -> Any:
            return attend(graph, q, k, v, score=score, edge_gate=edge, backend=backend)

        assert_backends_equal(run, q, k, v, edge, parameters=score.parameters(), tolerance=1e-10)
        out: Any = attend(graph, q, k, v, score=score, edge_gate=edge)
        assert not out[graph.in_degree == 0].any(), f"{kind}: a target without an edge must get 0"
        order = torch.randperm(graph.num_edges)
        moved = TokenGraph.from_edge_index(
            graph.edge_index[:, order], num_targets=graph.num_targets, num_sources=graph.num_sources
        )
        again: Any = attend(moved, q, k, v, score=score, edge_gate=None if edge is None else edge[order])
        _close(again, out, f"{kind}: edge order", 1e-10)


def check_mechanism(mechanism: str | nn.Module, *, width: int = 8, heads: int = 2) -> None:
    """Run a mechanism on many graphs: finite gradients, equivariance to the order of tokens, invariance to the order of
    edges, and a batch that equals its members.

    Args:
        mechanism: A registered name (made with ``width`` and ``heads``), or a
            :class:`~graphattn.mechanisms.Mechanism`, which is converted to float64 and evaluation mode in place.
        width: Channels of a token row.
        heads: Attention heads.

    Raises:
        AssertionError: If one of these does not hold.
    """
    from graphattn.mechanisms import MECHANISMS

    module = MECHANISMS.get(mechanism)(width, heads) if isinstance(mechanism, str) else mechanism
    module.double().eval()
    for seed, kind in enumerate(GRAPH_KINDS):
        graph = random_graph(seed, kind)
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(graph.num_tokens, width, dtype=torch.float64, generator=random, requires_grad=True)
        out, _ = module(x, graph)
        assert out.shape == x.shape, f"{kind}: output {list(out.shape)}, expected {list(x.shape)}"
        inputs = [x, *module.parameters()]
        for gradient in torch.autograd.grad(out.square().sum(), inputs, allow_unused=True, materialize_grads=True):
            assert bool(gradient.isfinite().all()), f"{kind}: a gradient is not finite"

        # Token n of the permuted graph is token order[n] of the first; each stays in its member.
        sizes = [(begin, end - begin) for begin, end in zip(*_bounds(graph), strict=True)]
        order = torch.cat([begin + torch.randperm(size, generator=random) for begin, size in sizes])
        shuffle = torch.randperm(graph.num_edges, generator=random)
        edges = order.argsort()[graph.edge_index][:, shuffle]
        moved, _ = module(x[order], TokenGraph.from_edge_index(edges, graph.num_tokens, ptr=graph.target_ptr))
        _close(moved, out[order], f"{kind}: permutation of tokens and edges")
        for begin, end in zip(*_bounds(graph), strict=True):
            mine = (graph.edge_index[1] >= begin) & (graph.edge_index[1] < end)
            member = TokenGraph.from_edge_index(graph.edge_index[:, mine] - begin, end - begin)
            _close(module(x[begin:end], member)[0], out[begin:end], f"{kind}: member {begin}:{end} of a batch")


def _tokens(
    graph: TokenGraph, heads: int, channels: int, edge_channels: int | None, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, heads, columns, dtype=torch.float64, generator=random)

    q, k, v = (draw(rows, channels) for rows in (graph.num_targets, graph.num_sources, graph.num_sources))
    return q, k, v, None if edge_channels is None else draw(graph.num_edges, edge_channels)


def _bounds(graph: TokenGraph) -> tuple[list[int], list[int]]:
    ptr = [0, graph.num_tokens] if graph.target_ptr is None else graph.target_ptr.tolist()
    return ptr[:-1], ptr[1:]


def _close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")
