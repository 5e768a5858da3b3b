"""Attention in windows of prompts: every backend against dense softmax in float64, and what the windows promise."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graphattn import TokenGraph, attend, explain, patterns
from graphattn._fold import Fold
from graphattn.backends import _windowed
from graphattn.backends.auto import _suits_tiles
from graphattn.backends.base import Call
from graphattn.backends.tiles import Tiles
from graphattn.graph.graph_window import GraphWindow
from graphattn.graph.prepared import blocks_of
from graphattn.score import DotScore
from graphattn_kernels.bits import unpack
from graphattn_kernels.blocks import to_mask

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None
SIDES = ["none", "left", "right", "mixed"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def prompt_batch(
    side: str = "none", tokens: int = 60, *, batch: int = 3, fan: int = 2, device: str = "cpu"
) -> dict[str, Tensor]:
    """Ragged trees with fan-out [fan, fan] in text, some without a node."""
    random = torch.Generator().manual_seed(1)
    size = 1 + fan + fan * fan
    full = [-1, *(x for f in range(fan) for x in (0, *(fan * [1 + f * (fan + 1)])))]
    parent, vertex = torch.full((batch, size), -1), torch.full((batch, tokens), -1)
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    lost = tokens // 6
    for row in range(batch):
        count = size if row == 0 else 0 if row == batch - 1 and batch > 2 else max(1, size - row - 1)
        parent[row, :count] = torch.tensor(full[:count])
        place = torch.randperm(tokens - 2 * lost - 1, generator=random)[:count].sort().values + lost
        vertex[row, place] = torch.arange(count)
        if side in ("left", "mixed"):
            mask[row, : lost * row // batch] = False
        if side in ("right", "mixed"):
            mask[row, tokens - lost + lost * row // batch :] = False
    return {"node_of_token": vertex.to(device), "parent": parent.to(device), "mask": mask.to(device)}


def window_of(batch: dict[str, Tensor], hops: int | None, direction: Any, side: str, **options: Any) -> Any:
    mask = None if side == "none" else batch["mask"]
    return patterns.graph_window(batch["node_of_token"], batch["parent"], hops, direction, mask=mask, **options)


def rows_of(
    batch: int, tokens: int, heads: int = 2, width: int = 16, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    shape = (batch, tokens, heads, width)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(DEVICE, dtype) for _ in range(4)]


def dense(mask: Tensor, q: Tensor, k: Tensor, v: Tensor, nothing: float = float("-inf")) -> Tensor:
    """The released way: an additive mask on all pairs; 0 where a row is empty."""
    score = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    score = score + torch.where(mask, 0.0, nothing).to(q.dtype).unsqueeze(1)
    weight = torch.where(mask.any(-1)[:, None, :, None], score, 0.0).softmax(-1)
    weight = weight * mask.any(-1)[:, None, :, None]
    return torch.einsum("bhts,bshd->bthd", weight, v)


def check(graph: TokenGraph, inputs: list[Tensor], backend: str, *, backward: bool = True) -> None:
    *x, grad = inputs
    x = [part.detach().requires_grad_(backward) for part in x]
    exact = [part.detach().double().requires_grad_(backward) for part in x]
    out, expected = (
        attend(graph, *x, backend=backend),
        dense(graph.to_dense().view(-1, *graph.to_dense().shape[-2:]), *exact),
    )
    found, known = [out], [expected]
    if backward:
        found += torch.autograd.grad(out, x, grad)
        known += torch.autograd.grad(expected, exact, grad.double())
    tolerance = TOLERANCE[x[0].dtype]
    for mine, other in zip(found, known, strict=True):
        torch.testing.assert_close(
            mine.double(), other, atol=tolerance * max(1.0, float(other.detach().abs().max())), rtol=0
        )


@pytest.fixture(params=["rows", "tiles", "pairs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Causal attention and some rows, in tiles or not, or all pairs under a mask, whatever the sizes."""
    monkeypatch.setattr(_windowed, "SHORT", 10**9 if request.param == "pairs" else 0)
    monkeypatch.setattr(_windowed, "_MANY", 0)
    if request.param == "tiles" and not TRITON:
        pytest.skip("needs triton")
    if request.param == "rows" or not CUDA:  # on the CPU the operation is there, but is not taken
        monkeypatch.setattr(_windowed, "_takes_tiles", lambda q, v: request.param == "tiles")
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("direction", ["uni", "bidi"])
def test_equals_dense_softmax(direction: str, side: str, dtype: torch.dtype, way: str) -> None:
    if way == "tiles" and dtype != torch.float32 and not CUDA:
        pytest.skip("the interpreter takes long, and tiles leave float64 to others")
    batch = prompt_batch(side)
    for hops in (0, 1, None):
        graph = window_of(batch, hops, direction, side).to(DEVICE)
        if isinstance(graph, GraphWindow):
            assert _windowed.few_rows(graph) == ((way != "pairs" or not graph.rows.shape[1]) and side != "mixed")
            check(graph, rows_of(3, 60, dtype=dtype), "sdpa")


@pytest.mark.parametrize("backend", ["auto", "gather", "numba", "flex"])
@pytest.mark.parametrize("side", SIDES)
def test_backends_agree(backend: str, side: str) -> None:
    if backend == "numba" and CUDA:
        pytest.skip("on CPU")
    batch = prompt_batch(side)
    graph = window_of(batch, 1, "bidi", side).to(DEVICE)
    check(graph, rows_of(3, 60), backend, backward=backend != "flex" or CUDA)


@pytest.mark.parametrize("tokens", [60, 200])
@pytest.mark.parametrize("side", SIDES)
def test_the_bits_of_a_window(side: str, tokens: int) -> None:
    graph = window_of(prompt_batch(side, tokens), 1, "uni", side).to(DEVICE)
    dense = graph.to_dense()
    assert torch.equal(unpack(graph.words, tokens), dense)
    assert torch.equal(to_mask(blocks_of(graph)), dense)
    alone = {name: x[0] for name, x in prompt_batch(side, tokens).items()}
    alone_graph = window_of(alone, 1, "uni", side).to(DEVICE)
    assert torch.equal(unpack(alone_graph.words, tokens)[0], alone_graph.to_dense())
    assert torch.equal(to_mask(blocks_of(alone_graph)).view(tokens, tokens), alone_graph.to_dense())


def test_long_windows_take_tiles_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice as on CUDA: reasons that the machine has are left out."""
    monkeypatch.setattr(Tiles, "reason", lambda self, call: None)
    for direction, side, tokens, width, tiled in [
        ("uni", "none", 600, 64, True),
        ("uni", "none", 600, 128, False),
        ("uni", "left", 600, 128, True),
        ("bidi", "none", 600, 64, False),
        ("uni", "none", 60, 64, False),
    ]:
        graph = window_of(prompt_batch(side, tokens), 1, direction, side)
        q, k, v, _ = rows_of(3, tokens, 1, width)
        call = Call(graph, Fold(graph, (3,), 1), q, k, v, DotScore())
        assert _suits_tiles(call, graph) == tiled


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton")
@pytest.mark.parametrize("backend", ["tiles", "triton"])
def test_our_kernels_agree(backend: str) -> None:
    batch = prompt_batch("left", tokens=40, batch=2)
    graph = window_of(batch, 1, "bidi", "left").to(DEVICE)
    check(graph, rows_of(2, 40, 1), backend)


def test_the_graph_says_who_runs_it() -> None:
    batch = prompt_batch("left")
    q, k, v, _ = rows_of(3, 60)
    graph = window_of(batch, 1, "uni", "left").to(DEVICE)
    assert explain(graph, q, k, v).backend == "sdpa"
    assert explain(graph, q, k, v, need_weights=True).backend != "sdpa"
    seed = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    dropped = attend(graph, q, k, v, dropout_p=0.5, dropout_seed=seed)
    assert not torch.equal(dropped, attend(graph, q, k, v))  # type: ignore[arg-type]


def test_one_prompt_and_further_leading_dimensions(way: str) -> None:
    batch = prompt_batch("left")
    q, k, v, _ = rows_of(3, 60)
    graph = window_of(batch, 1, "uni", "left").to(DEVICE)
    expected = attend(graph, q, k, v)
    more = attend(
        graph, *(x.expand(2, *x.shape) * torch.tensor([1.0, 2.0], device=DEVICE).view(2, 1, 1, 1, 1) for x in (q, k, v))
    )
    torch.testing.assert_close(more[0], expected)  # type: ignore[index]
    torch.testing.assert_close(more[1], attend(graph, 2 * q, 2 * k, 2 * v))  # type: ignore[index]
    single = patterns.graph_window(batch["node_of_token"][1], batch["parent"][1], 1, mask=batch["mask"][1]).to(DEVICE)
    torch.testing.assert_close(attend(single, q[1], k[1], v[1]), expected[1])  # type: ignore[index]
    shared = attend(single, q, k, v)
    torch.testing.assert_close(shared[1], expected[1])  # type: ignore[index]


@pytest.mark.parametrize("backend", ["auto", "gather", "sdpa"])
def test_the_widest_window_is_causal_bit_by_bit(backend: str) -> None:
    batch = prompt_batch("right")
    q, k, v, _ = rows_of(3, 60)
    causal = attend(patterns.causal(60, device=DEVICE), q, k, v, backend=backend)
    widest = window_of(batch, 4, "uni", "none", depth=2).to(DEVICE)
    assert torch.equal(attend(widest, q, k, v, backend=backend), causal)  # type: ignore[arg-type]
    listed = window_of(batch, 4, "uni", "none").to(DEVICE)  # nobody said that the trees have depth 2
    torch.testing.assert_close(attend(listed, q, k, v, backend=backend), causal, atol=1e-5, rtol=0)
    if backend == "gather":
        assert torch.equal(attend(listed, q, k, v, backend=backend), causal)  # type: ignore[arg-type]
    padded = attend(window_of(batch, None, "uni", "right").to(DEVICE), q, k, v, backend=backend)
    mask = batch["mask"].to(DEVICE)
    if backend == "sdpa":
        assert torch.equal(padded[mask], causal[mask])  # type: ignore[index]
    assert not padded[~mask].any()  # type: ignore[index]


def test_a_large_number_does_for_minus_infinity() -> None:
    batch = prompt_batch()
    mask = window_of(batch, 1, "bidi", "none").to_dense().to(DEVICE)
    q, k, v, _ = rows_of(3, 60)
    torch.testing.assert_close(dense(mask, q, k, v, -6000.0), dense(mask, q, k, v), atol=1e-6, rtol=0)


@pytest.mark.parametrize("hops", [1, 2])
def test_reach(hops: int) -> None:
    """Without text, after l layers a node depends on nodes at most hops * l away; with text it does not end there."""
    parent = torch.tensor([-1, 0, 1, 2, 3, 4])  # a path
    far = (torch.arange(6)[:, None] - torch.arange(6)).abs()

    def depends(vertex: Tensor, layers: int) -> Tensor:
        graph = patterns.graph_window(vertex, parent, hops, "bidi")
        x = torch.randn(len(vertex), 1, 4, dtype=torch.float64)

        def network(x: Tensor) -> Tensor:
            for _ in range(layers):
                x = x + attend(graph, x, x, x)  # type: ignore[operator]
            return x

        jacobian = torch.autograd.functional.jacobian(network, x)
        return jacobian.abs().sum((1, 2, 4, 5)) > 0

    for layers in (1, 2, 3):
        assert torch.equal(depends(torch.arange(6), layers), far <= hops * layers)
    relayed = depends(torch.tensor([0, 1, 2, -1, 3, 4, 5]), 2)
    assert relayed[6, 0] and hops * 2 < 5


def test_names_of_vertices_do_not_matter_and_bidi_knows_no_order() -> None:
    parent = torch.tensor([-1, 0, 1, 1, 0, 4])
    name = torch.tensor([3, 0, 5, 1, 2, 4])  # vertex i is called name[i]
    renamed = torch.empty_like(parent)
    renamed[name] = torch.where(parent < 0, -1, name[parent.clamp(min=0)])
    vertex = torch.tensor([-1, 0, 1, 2, 3, 4, 5, -1])
    other = torch.where(vertex < 0, -1, name[vertex.clamp(min=0)])
    for direction in ("uni", "bidi"):
        same = patterns.graph_window(vertex, parent, 1, direction)  # type: ignore[arg-type]
        assert torch.equal(same.to_dense(), patterns.graph_window(other, renamed, 1, direction).to_dense())  # type: ignore[arg-type]
    # The trees of two siblings exchanged: without positions, what each vertex becomes is the same.
    x = torch.randn(8, 1, 4, dtype=torch.float64)
    order = torch.tensor([0, 1, 5, 6, 2, 3, 4, 7])
    graph = patterns.graph_window(vertex, parent, 1, "bidi")
    moved = patterns.graph_window(vertex[order], parent, 1, "bidi")
    out, again = attend(graph, x, x, x), attend(moved, x[order], x[order], x[order])
    torch.testing.assert_close(again, out[order])  # type: ignore[index]


def test_it_compiles() -> None:
    batch = prompt_batch("left")
    graph = window_of(batch, 1, "uni", "left").prepare()
    q, k, v, _ = rows_of(3, 60)
    graph = graph.to(DEVICE)
    run = torch.compile(lambda q, k, v: attend(graph, q, k, v), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(q, k, v), attend(graph, q, k, v))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("direction", ["uni", "bidi"])
def test_large_prompts(direction: str, side: str, dtype: torch.dtype) -> None:
    """4096 tokens, 73 of them nodes: ours, FlexAttention and tiles against the dense mask in float32."""
    batch = prompt_batch(side, 4096, batch=2, fan=8, device="cuda")
    graph = window_of(batch, 2, direction, side)
    assert graph.rows.shape[1] == 73 and _windowed.few_rows(graph)
    *x, grad = rows_of(2, 4096, 4, 64, dtype)
    exact = [part.float().requires_grad_() for part in x]
    q, k, v = (part.transpose(1, 2) for part in exact)
    mask = graph.pair_mask.unsqueeze(1)
    expected = (
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        * graph.to_dense().any(-1)[..., None, None]
    )
    known = [expected, *torch.autograd.grad(expected, exact, grad.float())]
    for backend in ("auto", "flex", "tiles"):
        mine = [part.detach().requires_grad_() for part in x]
        out = attend(graph, *mine, backend=backend)
        for found, other in zip([out, *torch.autograd.grad(out, mine, grad)], known, strict=True):
            error = (found.float() - other).norm() / other.norm()
            assert float(error) < 2e-2, (backend, float(error))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_the_device_is_not_waited_for() -> None:
    batch = prompt_batch("left", 2048, fan=8, device="cuda")
    q, k, v, _ = rows_of(3, 2048, 2, 64, torch.bfloat16)
    attend(window_of(batch, 2, "uni", "left"), q, k, v)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = window_of(batch, 2, "uni", "left", node_tokens=73, padding="left")
        attend(graph, q, k, v)
    finally:
        torch.cuda.set_sync_debug_mode("default")
