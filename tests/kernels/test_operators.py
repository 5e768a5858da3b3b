"""The contract with torch: opcheck, compile, export, and running where Triton or Numba cannot be imported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphattn.graph import TokenGraph
from graphattn.testing import random_graph
from graphattn_kernels import Structure, csr_attention, sddmm, segment_softmax, segment_sum, spmm, spread
from graphattn_kernels.structure import flat

Draw = Callable[..., Tensor]
OPS = torch.ops.graphattn
H, D, D_V = 2, 3, 4


BACKENDS = pytest.mark.parametrize("backend", ["gather", "numba"])


def _samples(
    structure: Structure, draw: Draw, backend: str
) -> dict[str, tuple[torch._ops.OpOverload, tuple[object, ...]]]:
    t, s, e = structure.num_targets, structure.num_sources, structure.num_edges
    q, k, v = draw(t, H, D), draw(s, H, D), draw(s, H, D_V)
    bias, gate, seed = draw(e, H), draw(e, H, D), torch.tensor([1, 2])
    for x in (q, k, v, bias, gate):
        x.requires_grad_()
    slopes = draw(e, H).requires_grad_(), draw(t, H).requires_grad_()
    none = (None,) * 5
    samples = {
        "segment_sum": (OPS.segment_sum, (gate,)),
        "spread": (OPS.spread, (q,)),
        "sddmm": (OPS.sddmm, (q, k, False)),
        "sddmm-channels": (OPS.sddmm, (q, k, True)),
        "spmm": (OPS.spmm, (bias, v)),
        "spmm-channels": (OPS.spmm, (gate, k)),
        "segment_softmax": (OPS.segment_softmax, (bias,)),
        "segment_softmax_backward": (OPS.segment_softmax_backward, (bias, *slopes)),
        "csr_attention": (OPS.csr_attention, (q, k, v, *none, 0.5, None, None, 0.0, False)),
        "csr_attention-all": (OPS.csr_attention, (q, k, v, bias, gate, None, None, seed, 0.5, 1.0, None, 0.2, True)),
    }
    return {name: (op.default, (*flat(structure), *args, backend)) for name, (op, args) in samples.items()}


NAMES = list(_samples(random_graph(0).structure, torch.zeros, "gather"))


@BACKENDS
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["empty_rows", "no_edges"])
def test_opcheck(name: str, kind: str, backend: str, draw: Draw) -> None:
    """Schema, autograd registration, fake tensors and AOT dispatch with dynamic shapes."""
    op, args = _samples(random_graph(1, kind, bipartite=True).structure, draw, backend)[name]
    torch.library.opcheck(op, args)


@BACKENDS
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_without_a_permutation_of_edges_and_with_strides(name: str, backend: str, draw: Draw) -> None:
    """Sorted graphs have no ``edge_id``; inputs may have any strides."""
    graph = _sorted_graph()
    assert graph.structure.by_target.edge_id is None

    def backwards(*shape: int) -> Tensor:
        return draw(*reversed(shape)).permute(*reversed(range(len(shape))))

    op, args = _samples(graph.structure, backwards, backend)[name]
    torch.library.opcheck(op, args)


def _sorted_graph() -> TokenGraph:
    return TokenGraph.from_csr(torch.tensor([0, 2, 2, 5]), torch.tensor([0, 2, 0, 1, 1]))


def _layer(structure: Structure, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seed: Tensor, backend: str) -> Tensor:
    """All operations in one function."""
    out, lse = csr_attention(
        structure, q, k, v, edge_bias=bias, scale=0.5, clamp=2.0, dropout_p=0.3, dropout_seed=seed, backend=backend
    )
    weights, _ = segment_softmax(structure, sddmm(structure, q, k, backend=backend) + bias, backend=backend)
    gated = spmm(structure, sddmm(structure, q, k, channels=True, backend=backend), v, backend=backend)
    mass = segment_sum(structure, weights, backend=backend).unsqueeze(-1)
    return out + spmm(structure, weights, v, backend=backend) + gated + mass + spread(structure.T, v).sum()


@pytest.mark.parametrize("kernels", ["gather", "numba", "auto"])
def test_compile_forward_and_backward_at_three_sizes_with_one_recompilation(kernels: str, draw: Draw) -> None:
    torch._dynamo.reset()
    compilations = []

    def backend(module: nn.Module, inputs: list[Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.debugging import aot_eager

        compilations.append(1)
        return aot_eager(module, inputs)

    compiled = torch.compile(_layer, fullgraph=True, dynamic=True, backend=backend)
    seed = torch.tensor([3, 4])
    for n in (1, 2, 3):
        structure = random_graph(n, "hub", bipartite=n == 2).structure
        inputs = [
            draw(structure.num_targets, H, D),
            draw(structure.num_sources, H, D),
            draw(structure.num_sources, H, D),
            draw(structure.num_edges, H),
        ]
        results = []
        for function in (compiled, _layer):
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = function(structure, *leaves, seed, kernels)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        torch.testing.assert_close(*results)
    assert len(compilations) <= 2


def test_the_default_compiler(draw: Draw) -> None:
    torch._dynamo.reset()
    structure = random_graph(1, "hub").structure
    q, k, v = (draw(structure.num_targets, H, D).requires_grad_() for _ in range(3))
    compiled = torch.compile(csr_attention, fullgraph=True, dynamic=True)
    results = []
    for function in (compiled, csr_attention):
        out, lse = function(structure, q, k, v, clamp=1.0, backend="gather")
        results.append([out, lse, *torch.autograd.grad((out.sum(), lse.sum()), (q, k, v))])
    torch.testing.assert_close(*results)


class _Module(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, structure: Structure, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        return _layer(structure, q, k, v, bias, seed, self.backend)


@BACKENDS
def test_export(backend: str, draw: Draw) -> None:
    structure = random_graph(1, "hub").structure
    n, e = structure.num_targets, structure.num_edges
    args = (structure, draw(n, H, D), draw(n, H, D), draw(n, H, D), draw(e, H), torch.tensor([3, 4]))
    program = torch.export.export(_Module(backend), args)
    torch.testing.assert_close(program.module()(*args), _Module(backend)(*args))
