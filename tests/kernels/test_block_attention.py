"""Blocks of masks, the reference of block_attention, and what it says about bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from graphattn import TokenGraph
from graphattn_kernels import csr_attention
from graphattn_kernels.block_attention import block_attention
from graphattn_kernels.block_attention.api import select
from graphattn_kernels.blocks import Blocks, flat, from_mask, tile_bits, to_mask, unflat
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError

B, H, T, S = 2, 3, 70, 45


def random_order(size: int, nobody: int) -> Tensor:
    """Every token once, among places that hold nobody."""
    places = torch.cat([torch.arange(size), torch.full((nobody,), -1)])
    return places[torch.randperm(size + nobody)].int()


def random_mask(leading: str, full: bool = False) -> Tensor:
    copies = (B if "b" in leading else 1) * (H if "h" in leading else 1)
    mask = torch.rand(copies, T, S) < 0.1
    if full:
        mask[:, :32, :32] = True
    mask[:, 40] = False  # reads nobody
    mask[:, :, 7] = False  # read by nobody
    mask[0, 32:64, 32:] = False  # no tile here
    return mask


@pytest.mark.parametrize("leading", ["", "h", "b", "bh"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("block_targets", "block_sources"), [(32, 32), (64, 32), (32, 128)])
def test_a_mask_becomes_blocks_and_back(leading: str, ordered: bool, block_targets: int, block_sources: int) -> None:
    mask = random_mask(leading, full=True)
    orders = {"target": random_order(T, 9), "source": random_order(S, 30)} if ordered else {}
    blocks = from_mask(mask, block_targets, block_sources, leading=leading, **orders)
    assert torch.equal(to_mask(blocks), mask)
    assert torch.equal(to_mask(blocks.T), mask.transpose(1, 2))
    assert unflat((*flat(blocks), "more")) == blocks
    assert blocks.copies(B, H) * blocks.target_blocks == blocks.by_target.num_rows


def test_full_and_empty_tiles_have_no_bits() -> None:
    """Tile (0, 0) is full; the last block of sources is ragged, so its tiles are never called full."""
    mask = torch.ones(1, 64, 45, dtype=torch.bool)
    mask[0, 32:, :32] = False
    blocks = from_mask(mask, 32, 32)
    assert blocks.by_target.ptr.tolist() == [0, 2, 3]
    assert blocks.by_target.index.tolist() == [0, 1, 1]
    assert blocks.by_target.slot.tolist() == [-1, 0, 1]
    assert blocks.by_source.ptr.tolist() == [0, 1, 3]
    assert blocks.by_source.slot.tolist() == [-1, 0, 1]
    assert blocks.by_target.mask.shape == (2, 32, 1) and (blocks.by_target.mask == 2**13 - 1).all()
    assert blocks.by_source.mask[:, :13].eq(-1).all() and blocks.by_source.mask[:, 13:].eq(0).all()


def test_both_views_hold_the_same_tiles() -> None:
    blocks = from_mask(random_mask("h"), 32, 64, leading="h")

    def tiles(blocks: Blocks) -> dict[tuple[int, int, int], Tensor]:
        view = blocks.by_target
        bits = tile_bits(view, blocks.block_targets, blocks.block_sources)
        rows = torch.arange(view.num_rows).repeat_interleave(view.ptr.diff())
        names = zip(rows.tolist(), view.index.tolist(), strict=True)
        count = blocks.target_blocks
        return {(row // count, row % count, other): tile for (row, other), tile in zip(names, bits, strict=True)}

    by_target, by_source = tiles(blocks), tiles(blocks.T)
    assert by_target.keys() == {(copy, target, source) for copy, source, target in by_source}
    for (copy, target, source), bits in by_target.items():
        assert bits.any() and torch.equal(bits, by_source[copy, source, target].T)


def test_three_tokens_by_hand() -> None:
    """Target 0 reads 0 and 1 with scores 0 and ln 3; target 1 reads 2; target 2 reads nobody."""
    mask = torch.tensor([[[True, True, False], [False, False, True], [False, False, False]]])
    q = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    k = torch.tensor([0.0, math.log(3.0), 2.0], dtype=torch.float64).view(3, 1, 1)
    v = torch.tensor([4.0, 8.0, 5.0], dtype=torch.float64).view(3, 1, 1)
    out, lse = block_attention(from_mask(mask, 32, 32), q, k, v)
    torch.testing.assert_close(out.flatten(), torch.tensor([7.0, 5.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(lse.flatten(), torch.tensor([math.log(4.0), 2.0, -math.inf], dtype=torch.float64))
    out, lse = block_attention(from_mask(mask, 32, 32), q, k, v, scale=2.0, clamp=0.5)
    third = math.exp(0.5)
    torch.testing.assert_close(out[0, 0, 0].item(), (4 + 8 * third) / (1 + third))
    torch.testing.assert_close(lse[1, 0].item(), 0.5)


@pytest.mark.parametrize("leading", ["", "h", "b", "bh"])
def test_reference_is_masked_attention(leading: str) -> None:
    mask = random_mask(leading)
    q, k, v = (torch.randn(B, n, H, 8, dtype=torch.float64) for n in (T, S, S))
    blocks = from_mask(mask, 32, 64, target=random_order(T, 5), leading=leading)
    out, lse = block_attention(blocks, q, k, v, scale=0.2)
    dense = mask.view(B if "b" in leading else 1, H if "h" in leading else 1, T, S).expand(B, H, T, S)
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=dense, scale=0.2)
    reads = dense.any(-1)
    torch.testing.assert_close(out.transpose(1, 2)[reads], expected[reads])
    assert (out.transpose(1, 2)[~reads] == 0).all()
    scores = torch.einsum("bthd,bshd->bhts", q, k) * 0.2
    torch.testing.assert_close(lse.transpose(1, 2), scores.masked_fill(~dense, -math.inf).logsumexp(-1))


def test_reference_is_that_of_csr_attention() -> None:
    """The same edges, seen as tiles and as rows: values and gradients, with a clamp and through both results."""
    mask = random_mask("")
    target, source = mask[0].nonzero(as_tuple=True)
    graph = TokenGraph.from_edge_index(torch.stack([source, target]), num_targets=T, num_sources=S)
    x = [torch.randn(n, H, 4, dtype=torch.float64, requires_grad=True) for n in (T, S, S)]
    results = []
    for call, structure in ((block_attention, from_mask(mask, 32, 32)), (csr_attention, graph.structure)):
        out, lse = call(structure, *x, clamp=1.0, backend="reference")
        lse = lse.masked_fill(lse == -math.inf, 0.0)
        results.append([out, lse, *torch.autograd.grad(out.square().sum() + lse.sin().sum(), x)])
        assert all(torch.isfinite(y).all() for y in results[-1])
    torch.testing.assert_close(*results)


def test_reference_differentiates_twice() -> None:
    mask = torch.rand(1, 5, 4) < 0.6
    mask[0, 1] = False
    blocks = from_mask(mask, 32, 32)
    x = [torch.randn(n, 1, 2, dtype=torch.float64, requires_grad=True) for n in (5, 4, 4)]

    def f(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = block_attention(blocks, q, k, v, backend="reference")
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


@pytest.mark.parametrize(("targets", "sources"), [(0, 3), (3, 0), (0, 0)])
def test_no_tokens(targets: int, sources: int) -> None:
    blocks = from_mask(torch.ones(1, targets, sources, dtype=torch.bool), 32, 32)
    x = [torch.randn(n, 2, 4, requires_grad=True) for n in (targets, sources, sources)]
    out, lse = block_attention(blocks, *x)
    assert out.shape == (targets, 2, 4) and (out == 0).all() and (lse == -math.inf).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), x))


def test_arrays_with_strides_are_refused() -> None:
    blocks = from_mask(torch.ones(1, 3, 3, dtype=torch.bool), 32, 32)
    with pytest.raises(ArgumentError, match=r"arrays of the graph must be contiguous, got strides \[2\]"):
        block_attention(blocks._replace(target=torch.arange(6, dtype=torch.int32)[::2]), *[torch.randn(3, 2, 4)] * 3)


def test_no_targets_of_a_graph_for_each_head() -> None:
    blocks = from_mask(torch.ones(2, 0, 3, dtype=torch.bool), 32, 32, leading="h")
    out, lse = block_attention(blocks, *(torch.randn(n, 2, 4) for n in (0, 3, 3)), backend="reference")
    assert out.shape == (0, 2, 4) and lse.shape == (0, 2)


def test_autocast_casts_the_arguments_only() -> None:
    blocks = from_mask(torch.rand(1, T, S) < 0.5, 32, 32)
    x = [torch.randn(n, 2, 4) for n in (T, S, S)]
    with torch.autocast("cpu", torch.bfloat16):
        found = block_attention(blocks, *x, backend="reference")
    expected = block_attention(blocks, *(y.bfloat16() for y in x), backend="reference")
    assert found[1].dtype == torch.float32 and all(map(torch.equal, found, expected))


def inputs(**other: Tensor) -> dict[str, Tensor]:
    return {"q": torch.randn(B, T, H, 4), "k": torch.randn(B, S, H, 4), "v": torch.randn(B, S, H, 6), **other}


@pytest.mark.parametrize(
    ("error", "match", "leading", "given"),
    [
        (ArgumentTypeError, "v must be a tensor, got list", "", {"v": [1.0]}),
        (ArgumentTypeError, "q must be a floating tensor", "", {"q": torch.ones(B, T, H, 4, dtype=torch.int32)}),
        (ArgumentTypeError, "k must have the dtype and device of q", "", {"k": torch.randn(B, S, H, 4).double()}),
        (ArgumentError, r"q must be \[B, T, H, D\] or", "", {"q": torch.randn(T, H)}),
        (ArgumentError, r"q must have .* each target \(70\), got shape \[2, 45", "", {"q": torch.randn(B, S, H, 4)}),
        (ArgumentError, r"v must have .* each source \(45\)", "", {"v": torch.randn(B, T, H, 4)}),
        (ArgumentError, "v must have 4 dimensions", "", {"v": torch.randn(S, H, 4)}),
        (ArgumentError, "k must have the batch and heads of q", "", {"k": torch.randn(B, S, H + 1, 4)}),
        (ArgumentError, "v must have the batch and heads of q", "", {"v": torch.randn(B + 1, S, H, 4)}),
        (ArgumentError, "k must have the channels of q, 4, got 5", "", {"k": torch.randn(B, S, H, 5)}),
        (ArgumentError, "each batch entry has its graph", "b", {"q": torch.randn(T, H, 4)}),
        (ArgumentError, "clamp must be positive", "", {"clamp": 0.0}),
        (ArgumentError, "backend must be", "", {"backend": "best"}),
        (BackendError, "'gather' cannot run: this operation has no such", "", {"backend": "gather"}),
    ],
)
def test_bad_input(error: type[Exception], match: str, leading: str, given: dict[str, object]) -> None:
    blocks = from_mask(random_mask(leading), 32, 32, leading=leading)
    with pytest.raises(error, match=match):
        block_attention(blocks, **inputs(**given))  # type: ignore[arg-type]


def test_a_graph_made_for_other_heads() -> None:
    blocks = from_mask(random_mask("bh"), 32, 32, leading="bh")
    two_heads = {name: x[:, :, :2] for name, x in inputs().items()}
    with pytest.raises(ArgumentError, match="batch and heads that the graph was made for"):
        block_attention(blocks, **two_heads)


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 1, 4)
    assert select("auto", x, x) == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    assert select("triton", x, x) == "triton"
    with pytest.raises(BackendError, match="got torch.float64; use 'reference'"):
        select("triton", x.double(), x.double())
    with pytest.raises(BackendError, match="at most 256 channels a head, got 4 and 300"):
        select("triton", x, torch.randn(3, 1, 300))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendError, match="CUDA"):
        select("triton", x, x)
