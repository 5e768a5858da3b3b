"""The portable backend on a GPU: equal to the reference on the CPU, and the same bits each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn.testing import GRAPH_KINDS, random_graph
from graphattn_kernels import Structure, csr_attention, sddmm, segment_softmax, segment_sum, spmm, spread

pytestmark = pytest.mark.gpu
H, D, D_V = 3, 4, 5


def everything(structure: Structure, inputs: list[Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients of every operation."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    q, k, v, bias, gate = leaves
    seed = torch.tensor([1, 2], device=q.device)
    weights, lse = segment_softmax(structure, sddmm(structure, q, k, backend=backend) + bias, backend=backend)
    mixed = spmm(structure, weights, v, backend=backend)
    channels = spmm(structure, gate, k, backend=backend)
    total = spread(structure.T, segment_sum(structure.T, gate, backend=backend), backend=backend)
    out, out_lse = csr_attention(
        structure, q, k, v, edge_bias=bias, edge_gate=gate, clamp=1.0, dropout_p=0.3, dropout_seed=seed, backend=backend
    )
    results = [weights, lse, mixed, channels, total, out, out_lse]
    slopes = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape) for y in results]
    return [y.detach() for y in results] + list(torch.autograd.grad(results, leaves, slopes))


def make(kind: str, bipartite: bool) -> tuple[Structure, Structure, list[Tensor]]:
    graph = random_graph(3, kind, bipartite=bipartite)
    random = torch.Generator().manual_seed(0)
    t, s, e = graph.num_targets, graph.num_sources, graph.num_edges
    shapes = [(t, H, D), (s, H, D), (s, H, D_V), (e, H), (e, H, D)]
    inputs = [torch.randn(*shape, dtype=torch.float64, generator=random) for shape in shapes]
    return graph.structure, graph.to("cuda").structure, inputs


@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_gather_equals_the_reference_on_the_cpu(kind: str, bipartite: bool) -> None:
    on_cpu, on_cuda, inputs = make(kind, bipartite)
    got = everything(on_cuda, [x.cuda() for x in inputs], "gather")
    for a, b in zip(got, everything(on_cpu, inputs, "reference"), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_each_time(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    graph = random_graph(3, "hub")
    edges = torch.cat([graph.edge_index, torch.randint(graph.num_tokens, (2, 20_000), generator=random)], 1)
    structure = type(graph).from_edge_index(edges.cuda(), graph.num_tokens).structure
    n, e = graph.num_tokens, edges.shape[1]
    shapes = [(n, H, D), (n, H, D), (n, H, D_V), (e, H), (e, H, D)]
    inputs = [torch.randn(*shape, generator=random).to("cuda", dtype) for shape in shapes]
    first = everything(structure, inputs, "gather")
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(structure, inputs, "gather"), strict=True))
