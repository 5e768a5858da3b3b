"""The Numba backend of csr_attention: hubs, threads, bits, precision, and the cache of compiled code.

Values and gradients on every kind of graph are compared with the reference in ``test_against_reference``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from graphattn.graph import TokenGraph
from graphattn.testing import (
    assert_backends_equal,
    assert_within_budget,
    eager_attention,
    random_graph,
    require_or_skip,
)
from graphattn_kernels import Structure, csr_attention
from graphattn_kernels._random import dropout_scale
from graphattn_kernels.errors import BackendError

require_or_skip("numba")

Draw = Callable[..., Tensor]
H, D, D_V = 3, 5, 9
SEED = torch.tensor([-7, 2**40 + 3])
ALL = {"scale": 0.6, "clamp": 1.2, "dropout_p": 0.3, "dropout_seed": SEED}


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more than three edges count as hubs, and every call is shared between the threads."""
    from graphattn_kernels.csr_attention.impl.numba import launch

    monkeypatch.setattr(launch, "_LONGEST", 3)
    monkeypatch.setattr(launch, "_SERIAL", 0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def large_graph(tokens: int = 300, edges: int = 20_000) -> TokenGraph:
    """Enough edges for several threads, one target and one source with 9,000 of them, one target with none."""
    random = torch.Generator().manual_seed(0)
    edge_index = torch.randint(tokens - 1, (2, edges), generator=random)
    edge_index[1, : edges // 2 - 1000], edge_index[0, -(edges // 2 - 1000) :] = 5, 7
    return TokenGraph.from_edge_index(edge_index[:, torch.randperm(edges, generator=random)], tokens)


def inputs(structure: Structure, draw: Draw, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    targets, sources, edges = structure.num_targets, structure.num_sources, structure.num_edges
    shapes = [(targets, H, D), (sources, H, D), (sources, H, D_V), (edges, H), (edges, H, D)]
    return [draw(*shape, dtype=dtype) for shape in shapes]


def attention(
    structure: Structure, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gate: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    options.setdefault("backend", "numba")
    return csr_attention(structure, q, k, v, edge_bias=bias, edge_gate=gate, **options)


def everything(structure: Structure, tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """Output, log-sum-exp and every gradient through both."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out, lse = attention(structure, *leaves, **options)
    lse_slope = torch.linspace(-1, 1, lse.numel(), dtype=lse.dtype).view_as(lse)
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, (out.detach(), lse_slope))]


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_rows")
@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_hubs_that_are_cut_equal_the_reference(structure: Structure, draw: Draw, options: dict[str, Any]) -> None:
    assert_backends_equal(
        lambda *x, backend: attention(structure, *x, backend=backend, **options),
        *inputs(structure, draw),
    )


@pytest.mark.usefixtures("short_rows")
def test_a_cut_hub_without_a_finite_score(draw: Draw) -> None:
    structure = random_graph(2, "hub").structure
    q, k, v, bias, gate = inputs(structure, draw)
    bias.fill_(float("-inf"))
    out, lse, *gradients = everything(structure, [q, k, v, bias, gate])
    assert (out == 0).all() and (lse == float("-inf")).all()
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("kind", ["hub", "empty_rows"])
@pytest.mark.parametrize("clamp", [None, 0.7], ids=["free", "clamped"])
def test_gradcheck(kind: str, clamp: float | None, draw: Draw) -> None:
    structure = random_graph(4, kind, bipartite=True).structure

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention(structure, *tensors, clamp=clamp, dropout_p=0.2, dropout_seed=SEED)
        return out, lse.masked_fill(lse == float("-inf"), 0.0)  # numerical differences of infinities are NaN

    assert gradcheck(run, [x.requires_grad_() for x in inputs(structure, draw)], fast_mode=True)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_the_dropout_mask_is_bit_for_bit_that_of_the_other_backends(p: float, draw: Draw) -> None:
    """With the edges of one target as channels of v, the output shows each weight by itself."""
    edges = 500
    graph = TokenGraph.from_edge_index(torch.stack([torch.randperm(edges), torch.zeros(edges).long()]), edges)
    v = torch.eye(edges, dtype=torch.float64)[:, None].expand(-1, H, -1)
    q = draw(edges, H, D)
    expected = dropout_scale(SEED, torch.arange(edges), H, p, torch.float64) > 0
    for backend in ("numba", "gather"):
        out, _ = csr_attention(graph.structure, q, q, v, dropout_p=p, dropout_seed=SEED, backend=backend)
        assert torch.equal(out[0].T[graph.edge_index[0]] > 0, expected), backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision_is_that_of_plain_code(dtype: torch.dtype, draw: Draw) -> None:
    graph = large_graph()
    tensors = inputs(graph.structure, draw, dtype)

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).detach().requires_grad_() for x in tensors]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return eager_attention(graph, q, k, v, edge_bias=bias, edge_gate=gate)

    actual = run(lambda *x: attention(graph.structure, *x)[0], dtype)
    plain, exact = run(eager, dtype), run(eager, torch.float64)
    for name, a, p, e in zip(("out", "q", "k", "v", "bias", "gate"), actual, plain, exact, strict=True):
        assert_within_budget(a, p, e, what=name)


def test_the_exponential_in_float32() -> None:
    """Two units in the last place over the range of weights; exact at 0, -inf and NaN."""
    from numba import njit

    from graphattn_kernels.csr_attention.impl.numba.kernels import _exp

    @njit
    def run(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = _exp(x[i])

    special = torch.tensor([0.0, -0.0, float("-inf"), float("nan"), -1e30, -87.5])
    x = torch.cat([special, torch.linspace(-86.9, 2.0, 100_001)])
    y = torch.empty_like(x)
    run(x.numpy(), y.numpy())
    torch.testing.assert_close(
        y[:6], torch.tensor([1.0, 1.0, 0.0, float("nan"), 0.0, 0.0]), rtol=0, atol=0, equal_nan=True
    )
    assert ((y[6:].double() / x[6:].double().exp() - 1).abs() < 2 * torch.finfo(torch.float32).eps).all()


def test_not_a_number_stays_visible(draw: Draw) -> None:
    structure = random_graph(1, "dense").structure
    q, k, v, bias, gate = (x.float() for x in inputs(structure, draw))
    q[2] = float("nan")
    for clamp in (None, 1.0):
        out, _ = attention(structure, q, k, v, bias, gate, clamp=clamp)
        assert out[2].isnan().all() and out[:2].isfinite().all() and out[3:].isfinite().all()


# --- memory and bits ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nan_filled_allocations")
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_every_result_is_written(structure: Structure, draw: Draw, cut: bool, request: pytest.FixtureRequest) -> None:
    if cut:
        request.getfixturevalue("short_rows")
    for x in everything(structure, inputs(structure, draw), **ALL):
        assert not x.isnan().any()


def test_strides_and_int64_do_not_matter(draw: Draw) -> None:
    structure = random_graph(6, "hub", bipartite=True).structure
    tensors = inputs(structure, draw)
    expected = everything(structure, tensors)
    wide = Structure(*(type(v)(*(None if x is None else x.long() for x in v)) for v in structure))
    assert all(map(torch.equal, everything(wide, tensors), expected))
    leaves = [x.transpose(0, -1).contiguous().requires_grad_() for x in tensors]
    out, _ = attention(structure, *(x.transpose(0, -1) for x in leaves))
    assert torch.equal(out, expected[0])
    assert all(g.shape == x.shape for g, x in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_repeats_and_thread_counts_give_the_same_bits(
    dtype: torch.dtype, draw: Draw, threads: Callable[[int], None]
) -> None:
    structure = large_graph().structure
    tensors = inputs(structure, draw, dtype)
    threads(1)
    expected = everything(structure, tensors, **ALL)
    for count in (1, 2, 3):
        threads(count)
        assert all(map(torch.equal, everything(structure, tensors, **ALL), expected)), f"{count} threads"


@pytest.mark.usefixtures("short_rows")
def test_calls_from_several_threads_at_once(draw: Draw, threads: Callable[[int], None]) -> None:
    threads(2)
    structures = [random_graph(n, kind).structure for n, kind in enumerate(["hub", "dense", "batch", "no_edges"])]
    cases = [(s, inputs(s, draw)) for s in structures] * 8
    expected = [everything(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lambda case: everything(*case), cases), expected, strict=True):
            assert all(map(torch.equal, got, want))


# --- the contract with torch, processes, devices --------------------------------------------------------------


def test_compile(draw: Draw) -> None:
    """The compiler sees one opaque operator, which ``"auto"`` resolves to this backend."""
    torch._dynamo.reset()
    structure = random_graph(1, "hub").structure
    leaves = [x.requires_grad_() for x in inputs(structure, draw)]
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    results = []
    for function, backend in ((compiled, "auto"), (attention, "numba")):
        out, lse = function(structure, *leaves, backend=backend, clamp=1.0)
        results.append([out, lse, *torch.autograd.grad((out.sum(), lse.sum()), leaves)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_opcheck(draw: Draw) -> None:
    from graphattn_kernels.structure import flat

    structure = random_graph(1, "empty_rows", bipartite=True).structure
    tensors = [x.requires_grad_() for x in inputs(structure, draw)]
    args = (*flat(structure), *tensors, 0.5, 1.0, 0.2, SEED, "numba")
    torch.library.opcheck(torch.ops.graphattn.csr_attention.default, args)


def test_other_devices_are_refused() -> None:
    graph = random_graph(0)
    arrays = (type(v)(*(None if x is None else x.to("meta") for x in v)) for v in graph.structure)
    q = torch.empty(graph.num_tokens, H, D, device="meta")
    with pytest.raises(
        BackendError, match="'numba' cannot run: it needs CPU tensors, got meta; use 'gather' or 'auto'"
    ):
        csr_attention(Structure(*arrays), q, q, q, backend="numba")


PROGRAM = """
import os, sys
sys.path[:0] = {paths!r}
import torch
import graphattn
from graphattn_kernels.csr_attention import ops

torch.set_num_threads(2)
graph = graphattn.TokenGraph.from_edge_index(torch.randint(50, (2, 30_000)), 50)
q = torch.randn(50, 4, 8)
expected = graphattn.attend(graph, q, q, q, backend="numba")
assert "tests" not in ops.__file__ and ops.__file__.startswith({paths!r}[0])

child = os.fork()  # as a data loader does
if child == 0:
    os._exit(not torch.equal(graphattn.attend(graph, q, q, q, backend="numba"), expected))
assert os.waitpid(child, 0)[1] == 0
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_and_a_package_that_cannot_be_written(tmp_path: Path) -> None:
    """The package is read-only and so is the home: the code is compiled for this process only; a fork uses it."""
    root = Path(__file__).resolve().parents[2]
    package = tmp_path / "kernels"
    shutil.copytree(
        root / "kernels" / "graphattn_kernels",
        package / "graphattn_kernels",
        ignore=shutil.ignore_patterns("__pycache__", "triton"),
    )
    folder = package / "graphattn_kernels" / "csr_attention" / "impl" / "numba"
    # A file where the cache wants a folder stops even root.
    (folder / "__pycache__").touch()
    home = tmp_path / "home"
    home.touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    code = PROGRAM.format(paths=[str(package), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
