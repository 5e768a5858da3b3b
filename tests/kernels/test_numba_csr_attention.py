"""The Numba backend of csr_attention: hubs, head sizes, threads, bits, precision, memory, the cache of compiled code.

Values and gradients for every pair of options stand in ``test_random_cases``, the contract with torch in
``test_contracts``, for all backends; the vectors that its code is made of in ``test_lanes``.
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
DOT = {"scale": 0.6, "clamp": 1.2, "dropout_p": 0.3, "dropout_seed": SEED, "need_product": True}
ADDITIVE = {"negative_slope": 0.2, "scale": 0.6, "clamp": 1.2, "dropout_p": 0.3, "dropout_seed": SEED}
SCORES = pytest.mark.parametrize("options", [DOT, ADDITIVE], ids=["dot", "additive"])


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more than three edges count as hubs, and every call is shared between the threads."""
    from graphattn_kernels import _numba

    monkeypatch.setattr(_numba, "_LONGEST", 3)
    monkeypatch.setattr(_numba, "_SERIAL", 0)


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


def inputs(
    structure: Structure,
    draw: Draw,
    dtype: torch.dtype = torch.float64,
    heads: int = H,
    widths: tuple[int, int] = (D, D_V),
) -> list[Tensor]:
    targets, sources, edges = structure.num_targets, structure.num_sources, structure.num_edges
    d, d_v = widths
    shapes = [(targets, heads, d), (sources, heads, d), (sources, heads, d_v)]
    shapes += [(edges, heads), (edges, heads, d), (heads, d)]
    return [draw(*shape, dtype=dtype) for shape in shapes]


def attention(
    structure: Structure, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gate: Tensor, att: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    """With bias and gate; additive scores with att, too."""
    options = {"backend": "numba", **options}
    if "negative_slope" in options:
        options["att"] = att
    return csr_attention(structure, q, k, v, edge_bias=bias, edge_gate=gate, **options)


def everything(structure: Structure, tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """All outputs, and every gradient through all of them."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    outputs = attention(structure, *leaves, **options)
    slopes = [(torch.arange(y.numel()) % 7 - 3).to(y.dtype).view_as(y) for y in outputs]
    gradients = torch.autograd.grad(outputs, leaves, slopes, allow_unused=True)
    return [y.detach() for y in outputs] + [g for g in gradients if g is not None]


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_rows")
@SCORES
def test_hubs_that_are_cut_equal_the_reference(structure: Structure, draw: Draw, options: dict[str, Any]) -> None:
    assert_backends_equal(
        lambda *x, backend: attention(structure, *x, backend=backend, **options),
        *inputs(structure, draw),
        backend="numba",
    )


@pytest.mark.usefixtures("short_rows")
@SCORES
def test_a_cut_hub_without_a_finite_score(draw: Draw, options: dict[str, Any]) -> None:
    structure = random_graph(2, "hub").structure
    tensors = inputs(structure, draw)
    tensors[3].fill_(float("-inf"))
    # Neither the clamp, which would make scores finite, nor the product, whose gradient has nothing to do with them.
    options = {name: value for name, value in options.items() if name not in ("clamp", "need_product")}
    out, lse, *gradients = everything(structure, tensors, **options)
    assert (out == 0).all() and (lse == float("-inf")).all()
    assert len(gradients) >= 5 and all((g == 0).all() for g in gradients)


# Loops are written out for the first two; 33 and 65 channels leave one beside whole vectors; nine heads need two.
@pytest.mark.parametrize(
    ("heads", "d", "d_v"),
    [(2, 1, 1), (9, 4, 6), (9, 1, 16), (1, 33, 8), (2, 65, 41), (3, 24, 17)],
)
@SCORES
def test_head_sizes(heads: int, d: int, d_v: int, draw: Draw, options: dict[str, Any]) -> None:
    for kind in ("hub", "empty_rows"):
        structure = random_graph(3, kind, bipartite=True).structure
        assert_backends_equal(
            lambda *x, backend, structure=structure: attention(structure, *x, backend=backend, **options),
            *inputs(structure, draw, heads=heads, widths=(d, d_v)),
            backend="numba",
        )


@pytest.mark.parametrize("kind", ["hub", "empty_rows"])
@SCORES
def test_gradcheck(kind: str, draw: Draw, options: dict[str, Any]) -> None:
    structure = random_graph(4, kind, bipartite=True).structure

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out, lse, *product = attention(structure, *tensors, **options)
        return out, lse.masked_fill(lse == float("-inf"), 0.0), *product  # differences of infinities are NaN

    assert gradcheck(run, [x.requires_grad_() for x in inputs(structure, draw)], fast_mode=True)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_the_dropout_mask_is_bit_for_bit_that_of_the_other_backends(p: float, draw: Draw) -> None:
    """With the edges of one target as channels of v, the output shows each weight by itself."""
    edges, heads = 500, 11
    graph = TokenGraph.from_edge_index(torch.stack([torch.randperm(edges), torch.zeros(edges).long()]), edges)
    v = torch.eye(edges, dtype=torch.float64)[:, None].expand(-1, heads, -1)
    q = draw(edges, heads, D)
    expected = dropout_scale(SEED, torch.arange(edges), heads, p, torch.float64) > 0
    for backend in ("numba", "gather"):
        out, _ = csr_attention(graph.structure, q, q, v, dropout_p=p, dropout_seed=SEED, backend=backend)
        assert torch.equal(out[0].T[graph.edge_index[0]] > 0, expected), backend


# --- precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision_is_that_of_plain_code(dtype: torch.dtype, draw: Draw) -> None:
    graph = large_graph()
    tensors = inputs(graph.structure, draw, dtype)[:5]

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).detach().requires_grad_() for x in tensors]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    def numba(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return csr_attention(graph.structure, q, k, v, edge_bias=bias, edge_gate=gate, backend="numba")[0]

    def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return eager_attention(graph, q, k, v, edge_bias=bias, edge_gate=gate)

    actual, plain, exact = run(numba, dtype), run(eager, dtype), run(eager, torch.float64)
    for name, a, p, e in zip(("out", "q", "k", "v", "bias", "gate"), actual, plain, exact, strict=True):
        assert_within_budget(a, p, e, what=name)


def test_half_types_are_float32_inside(draw: Draw) -> None:
    """Whole vectors are read and written in the half type itself; the arithmetic is bit for bit that of float32."""
    graph, dtype = large_graph(edges=4000), torch.bfloat16
    tensors = inputs(graph.structure, draw, dtype, widths=(8, 16))
    halves = everything(graph.structure, tensors, **DOT)
    floats = everything(graph.structure, [x.float() for x in tensors], **DOT)
    out, lse, product, grad_q, grad_k, grad_v, *_ = range(len(halves))
    assert torch.equal(halves[lse], floats[lse])
    for n in (out, product, grad_v):  # the other gradients know the rounded output
        assert halves[n].dtype == dtype and torch.equal(halves[n], floats[n].to(dtype)), n
    for n in (grad_q, grad_k):
        assert_within_budget(halves[n], floats[n].to(dtype), floats[n].double(), factor=8)


def test_not_a_number_stays_visible(draw: Draw) -> None:
    structure = random_graph(1, "dense").structure
    tensors = inputs(structure, draw, torch.float32)
    tensors[0][2] = float("nan")
    for options in ({}, {"clamp": 1.0}, {"negative_slope": 0.2}):
        out, lse = attention(structure, *tensors, **options)
        for result in (out, lse):
            assert result[2].isnan().all() and result[:2].isfinite().all() and result[3:].isfinite().all()


# --- memory and bits ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nan_filled_allocations")
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@SCORES
def test_every_result_is_written(
    structure: Structure, draw: Draw, cut: bool, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if cut:
        request.getfixturevalue("short_rows")
    for x in everything(structure, inputs(structure, draw), **options):
        assert not x.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@SCORES
def test_repeats_and_thread_counts_give_the_same_bits(
    dtype: torch.dtype, draw: Draw, threads: Callable[[int], None], options: dict[str, Any]
) -> None:
    structure = large_graph().structure
    tensors = inputs(structure, draw, dtype)
    threads(1)
    expected = everything(structure, tensors, **options)
    for count in (1, 2, 3, 4):
        threads(count)
        assert all(map(torch.equal, everything(structure, tensors, **options), expected)), f"{count} threads"


@pytest.mark.usefixtures("short_rows")
def test_calls_from_several_threads_at_once(draw: Draw, threads: Callable[[int], None]) -> None:
    threads(2)
    structures = [random_graph(n, kind).structure for n, kind in enumerate(["hub", "dense", "batch", "no_edges"])]
    cases = [(s, inputs(s, draw)) for s in structures] * 8
    expected = [everything(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lambda case: everything(*case), cases), expected, strict=True):
            assert all(map(torch.equal, got, want))


@pytest.mark.usefixtures("short_rows")
def test_the_thread_count_is_that_of_torch(
    draw: Draw, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphattn_kernels import _numba

    asked = []
    monkeypatch.setattr(_numba, "share", lambda function, cuts, count: asked.append(count) or function(0, cuts[-1]))
    structure = random_graph(2, "hub").structure
    tensors = inputs(structure, draw)
    for count, expected in ((1, set()), (2, {2}), (3, {3})):
        asked.clear()
        threads(count)
        attention(structure, *tensors)
        assert set(asked) == expected


# --- processes, devices ---------------------------------------------------------------------------------------


def test_other_devices_are_refused() -> None:
    graph = random_graph(0)
    arrays = (type(v)(*(None if x is None else x.to("meta") for x in v)) for v in graph.structure)
    q = torch.empty(graph.num_tokens, H, D, device="meta")
    with pytest.raises(
        BackendError, match="'numba' cannot run: it needs CPU tensors, got meta; use 'gather' or 'auto'"
    ):
        csr_attention(Structure(*arrays), q, q, q, backend="numba")


ROOT = Path(__file__).resolve().parents[2]


def run_program(code: str, folder: Path, **environment: str) -> list[str]:
    """What a fresh interpreter prints."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=300, env=inherited | environment, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


FORK = """
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
    package = tmp_path / "kernels"
    shutil.copytree(
        ROOT / "kernels" / "graphattn_kernels",
        package / "graphattn_kernels",
        ignore=shutil.ignore_patterns("__pycache__", "triton"),
    )
    # A file where the cache wants a folder stops even root.
    (package / "graphattn_kernels" / "csr_attention" / "impl" / "numba" / "__pycache__").touch()
    home = tmp_path / "home"
    home.touch()
    code = FORK.format(paths=[str(package), str(ROOT)])
    assert run_program(code, tmp_path, HOME=str(home), PYTHONDONTWRITEBYTECODE="1") == ["done"]


CACHED = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
from graphattn import TokenGraph
from graphattn_kernels import csr_attention

def run(edges):
    structure = TokenGraph.from_edge_index(torch.randint(1000, (2, edges)), 1000).structure
    q, v = torch.randn(1000, 4, 5, requires_grad=True), torch.randn(1000, 4, 9, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    csr_attention(structure, q, q, v, backend="numba")[0].sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

run(10)
from graphattn_kernels.csr_attention.impl.numba import passes
made = passes.forward, passes.prepare, passes.backward_sources, passes.backward_targets
print(sum(sum(f.stats.cache_misses.values()) for f in made))
print(run(400_000) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_another_process_compiles_nothing_and_memory_does_not_grow_with_edges_times_channels(
    tmp_path: Path, draw: Draw
) -> None:
    structure = random_graph(0).structure
    everything(structure, inputs(structure, draw, torch.float32))
    code = CACHED.format(paths=[str(ROOT), str(ROOT / "kernels")])
    compiled, grown = map(int, run_program(code, tmp_path, **os.environ))
    assert compiled == 0
    assert grown < 400_000 * 4 * (5 + 9) * 4 / 4
