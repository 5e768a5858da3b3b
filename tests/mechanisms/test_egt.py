"""EGT's attention: the sheet's formulas in float64, dense and by edges, and what SSA makes of the degree scaler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, patterns
from graphattn.errors import ArgumentError
from graphattn.mechanisms import SSA, EGTAttention, sampling
from graphattn.testing import random_graph

WIDTH, HEADS, EDGE = 8, 2, 5


def layer(edge: int | None = EDGE, **options: object) -> EGTAttention:
    torch.manual_seed(0)
    return EGTAttention(WIDTH, HEADS, edge, **options).double()


def by_hand(module: EGTAttention, x: Tensor, graph: TokenGraph, edge: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One target and head after the other."""
    q, k, v = module.qkv(x).view(-1, 3, HEADS, 4).unbind(1)
    source, target = graph.edge_index
    score = ((q[target] * k[source]).sum(-1) / 2).clamp(-5, 5)
    gate = torch.ones_like(score)
    if edge is not None:
        bias, logit = module.edge(edge).chunk(2, -1)
        score, gate = score + bias, logit.sigmoid()
    out = torch.zeros(len(x), HEADS, 4, dtype=torch.float64)
    for t in range(len(x)):
        mine = (target == t).nonzero().flatten()
        if len(mine):
            weight = score[mine].softmax(0) * gate[mine]
            scale = (1 + gate[mine].sum(0)).log() if t >= module.virtual_tokens else torch.ones(HEADS)
            out[t] = scale[:, None] * torch.einsum("eh,ehc->hc", weight, v[source[mine]])
    return module.out(out.flatten(1)), None if module.edge_out is None else module.edge_out(score)


@pytest.mark.parametrize("virtual", [0, 2])
@pytest.mark.parametrize("with_edges", [True, False])
@pytest.mark.parametrize("kind", ["complete", "hub", "self_loops", "duplicates"])
def test_by_hand(kind: str, with_edges: bool, virtual: int) -> None:
    graph = patterns.complete(9) if kind == "complete" else random_graph(1, kind)
    module = layer(EDGE if with_edges else None, virtual_tokens=virtual)
    x = 3 * torch.randn(graph.num_tokens, WIDTH, dtype=torch.float64, requires_grad=True)  # scores beyond the clip
    edge = torch.randn(graph.num_edges, EDGE, dtype=torch.float64, requires_grad=True) if with_edges else None
    found, wanted = module(x, graph, edge), by_hand(module, x, graph, edge)
    goal = torch.randn_like(wanted[0])

    def gradients(out: Tensor, new: Tensor | None) -> tuple[Tensor, ...]:
        loss = (out * goal).sum() + (0.0 if new is None else new.square().sum())
        return torch.autograd.grad(loss, [x, *([] if edge is None else [edge]), *module.parameters()])

    torch.testing.assert_close(found[0], wanted[0], atol=1e-11, rtol=0)
    if with_edges:
        torch.testing.assert_close(found[1], wanted[1], atol=1e-11, rtol=0)
    for mine, theirs in zip(gradients(*found), gradients(*wanted), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


def test_matrices_equal_edges_with_batches_and_ragged_batches() -> None:
    module = layer()
    complete = patterns.complete(7)
    x, edge = torch.randn(3, 7, WIDTH).double(), torch.randn(3, 49, EDGE).double()
    dense = module(x, complete, edge)
    module.backend = "gather"
    for mine, theirs in zip(dense, module(x, complete, edge), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    flat = module(x.flatten(0, 1), patterns.blocks(torch.tensor([0, 7, 14, 21])), edge.flatten(0, 1))
    torch.testing.assert_close(flat[0], dense[0].flatten(0, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(flat[1], dense[1].flatten(0, 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", ["auto", "gather"])
def test_dropout_of_weights_keeps_the_mean(backend: str) -> None:
    module = layer(attention_dropout=0.3, degree_scaler=False, edge_output=False, backend=backend)
    x, edge = torch.randn(6, WIDTH).double(), torch.randn(36, EDGE).double()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = module(x.expand(3000, -1, -1), patterns.complete(6), edge.expand(3000, -1, -1))[0]
        wanted = module.eval()(x, patterns.complete(6), edge)[0]
    error = (draws.mean(0) - wanted) / (draws.std(0) / 3000**0.5)
    assert error.abs().max() < 4.5 and draws.std(0).min() > 0


def test_the_scaler_keeps_its_expectation_under_ssa() -> None:
    """Invariant 10: the sum of gates over what was drawn, over its probability, is right in the mean; without it, it
    shrinks as keep does."""
    inner = layer()
    x, graph = torch.randn(64, WIDTH).double(), patterns.complete(64)
    edge = torch.randn(64 * 64, EDGE).double()
    gate = inner.edge(edge)[:, HEADS:].sigmoid().view(64, 64, HEADS)
    whole = gate.sum(1)
    for always in (0, 3):
        module = SSA(inner, 0.25, always=always)
        module.generator = torch.Generator().manual_seed(1)
        drawn = module.draw(graph, 3000, edges=True, share=True)
        copy, number = drawn.edge // graph.num_edges, drawn.edge % graph.num_edges
        source, target = graph.edge_index[:, number]
        kept = gate[target, source]
        share = drawn.share if isinstance(drawn.share, float) else drawn.share.unsqueeze(-1)
        sums = torch.zeros(3000 * 64, HEADS).double().index_add_(0, copy * 64 + target, kept / share)
        sums = sums.view(3000, 64, HEADS)
        error = (sums.mean(0) - whole) / (sums.std(0) / 3000**0.5)
        assert error.abs().max() < 4.8 and error.square().mean() < 2.0
        raw = (torch.zeros(3000 * 64, HEADS).double().index_add_(0, copy * 64 + target, kept)).view(3000, 64, HEADS)
        assert raw.mean() < 0.35 * whole.mean()
    # And the module uses it: the output on a sub-graph is larger than with the plain sum.
    with sampling(module, True, torch.Generator().manual_seed(2)), torch.no_grad():
        scaled = module(x, graph, edge)[0] - inner.out.bias
        module.generator.manual_seed(2)
        part = module.draw(graph, edges=True)
        plain = inner(x, part.graph, edge[part.edge])[0] - inner.out.bias
    assert scaled.norm() > 1.2 * plain.norm()


def test_bad_arguments() -> None:
    graph = patterns.complete(4)
    with pytest.raises(ArgumentError, match=r"made with edge_width=5, so edge is needed; edge rows, got edge=None"):
        layer()(torch.zeros(4, WIDTH).double(), graph)
    with pytest.raises(ArgumentError, match=r"made without edge rows, got edge=\[16, 5\]"):
        layer(None)(torch.zeros(4, WIDTH).double(), graph, torch.zeros(16, 5).double())
