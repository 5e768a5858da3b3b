"""What is built on a graph once: tiles, masks for FlexAttention; and whether tiles suit it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from graphattn.backends import BACKENDS
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, blocks, causal, complete, grid, hubs, prepared, window
from graphattn.graph.block_mask import block_mask
from graphattn.graph.order import image_tiles
from graphattn.graph.tiling import make_blocks
from graphattn.testing import random_graph

GRAPHS: dict[str, Callable[[], TokenGraph]] = {
    "list": lambda: random_graph(1, "hub", bipartite=True),
    "long list": lambda: TokenGraph.from_adj_t(torch.rand(200, 150) < 0.1),
    "batch": lambda: TokenGraph.batch([complete(40), causal(100), complete(9)]),
    "per head": lambda: TokenGraph.per_head([TokenGraph.from_adj_t(torch.rand(70, 40) < p) for p in (0, 0.3, 1.1)]),
    "per batch entry": lambda: TokenGraph.stack([random_graph(0, kind) for kind in ("hub", "no_edges", "dense")]),
    "per both": lambda: TokenGraph.stack([TokenGraph.per_head([complete(40), window(40, 1)])] * 2),
    "complete": lambda: complete(70, 130),
    "window and hubs": lambda: window(140, 5) | hubs(140, 3),
    "documents": lambda: causal(100) & blocks([0, 33, 100]),
}


def mask_of(mask: Any, batch: int, heads: int) -> Tensor:
    """What a BlockMask lets through: the pairs of its lists, asked about where its tiles are partial."""
    from torch.nn.attention.flex_attention import create_mask

    t, s = mask.seq_lengths
    rows, columns = mask.BLOCK_SIZE
    pairs = create_mask(mask.mask_mod, batch, heads, t, s, device="cpu")

    def listed(counts: Tensor, indices: Tensor) -> Tensor:
        tiles = torch.zeros(*indices.shape[:3], -(-s // columns), dtype=torch.bool)
        for b, h, row in torch.ones_like(counts).nonzero().tolist():
            tiles[b, h, row, indices[b, h, row, : counts[b, h, row]].long()] = True
        wide = tiles.repeat_interleave(rows, 2).repeat_interleave(columns, 3)[:, :, :t, :s]
        return wide.expand(batch, heads, t, s)

    partial = listed(mask.kv_num_blocks, mask.kv_indices)
    full = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (partial & full).any()
    return (partial & pairs) | full


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("block", [32, 128])
def test_to_block_mask(name: str, block: int) -> None:
    graph = GRAPHS[name]()
    mask = graph.to_block_mask(block)
    batch = graph.leading[0] if graph.leading_axes.startswith("b") else 2
    heads = graph.leading[-1] if graph.leading_axes.endswith("h") else 3
    expected = graph.to_dense().view(
        batch if graph.leading_axes.startswith("b") else 1,
        heads if graph.leading_axes.endswith("h") else 1,
        *mask.shape[2:],
    )
    assert torch.equal(mask_of(mask, batch, heads), expected.expand(batch, heads, -1, -1))
    assert tuple(mask.shape[:2]) == tuple(expected.shape[:2])


def test_a_block_mask_over_places() -> None:
    order = torch.randperm(70)
    for graph in (window(70, 3), TokenGraph.from_adj_t(window(70, 3).to_dense())):
        mask = block_mask(graph, make_blocks(graph, block_targets=32, block_sources=32, order=order))
        seen = mask_of(mask, 1, 1)[0, 0]
        assert torch.equal(seen[:70, :70], graph.to_dense()[order][:, order])
        assert not seen[70:].any() and not seen[:, 70:].any()


def test_tiles_are_built_once() -> None:
    graph = random_graph(0, "dense")
    made = prepared.blocks_of(graph)
    assert prepared.blocks_of(graph) is made
    assert graph.prepare("tiles") is graph and graph._blocks is not made
    assert prepared.suitable_blocks(graph) is graph._blocks
    mask = prepared.flex_mask_of(graph)
    assert graph.prepare("flex")._flex_mask is mask


def test_prepare_takes_block_and_order() -> None:
    image = grid(24, 24, 1)
    order = image_tiles(24, 24)
    image.prepare("tiles", block=64, order=order)
    assert image._blocks.block_targets == 64 and torch.equal(image._blocks.target.long(), order)
    image.prepare("tiles", block=(128, 32))
    assert (image._blocks.block_targets, image._blocks.block_sources) == (128, 32)
    with pytest.raises(ArgumentError, match="block and order are for backend 'tiles', got backend 'flex'"):
        image.prepare("flex", order=order)
    with pytest.raises(ArgumentError, match="backend must be one of .*'auto'.*got 'nonsense'"):
        complete(4).prepare("nonsense")
    assert set(prepared._PREPARED) == {"auto", *BACKENDS}
    with pytest.raises(ArgumentError, match="duplicate|hold each edge once"):
        random_graph(0, "duplicates").prepare("tiles")


def test_an_image_stands_in_squares_by_default() -> None:
    image = grid(24, 16, 1)
    assert torch.equal(prepared.blocks_of(image).target.long(), image_tiles(24, 16))


def test_copies_of_a_graph_do_not_carry_what_follows_from_it() -> None:
    graph = random_graph(0, "dense").prepare("tiles").prepare("flex")
    for other in (copy.copy(graph), pickle.loads(pickle.dumps(graph)), _pytree.tree_map(torch.clone, graph)):
        assert other._blocks is None and other._tile_fill is None and other._flex_mask is None
        assert torch.equal(other.edge_index, graph.edge_index)


def test_a_pickle_holds_no_memory_of_others() -> None:
    graph = random_graph(0, "dense")
    graph._csr = type(graph.csr)(*(torch.cat([x, x.new_zeros(10**6)])[: len(x)] for x in graph.csr))  # as on CUDA
    data = pickle.dumps(graph)
    assert len(data) < 10**6 and torch.equal(pickle.loads(data).edge_index, graph.edge_index)


@pytest.mark.parametrize("pattern", [causal(1 << 20), complete(1 << 20), causal(4096)], ids=repr)
def test_preparing_for_dense_attention_lists_nothing(pattern: TokenGraph) -> None:
    for backend in ("sdpa", "flash"):
        assert pattern.prepare(backend)._csr is None


def test_estimated_fill() -> None:
    assert prepared.estimated_fill(complete(128), (64, 64)) == 1.0
    assert prepared.estimated_fill(complete(64, 32), (64, 64)) == 0.5
    batch = TokenGraph.batch([random_graph(n, "sparse") for n in range(4)])
    mean = batch.num_edges / 4
    assert prepared.estimated_fill(batch, (32, 32)) == mean / 32**2
    stacked = TokenGraph.stack([window(40, 3), complete(40)])
    assert prepared.estimated_fill(stacked, (64, 32)) == stacked.num_edges / (2 * 64 * 64)
    assert prepared.estimated_fill(complete(0), (64, 64)) == 0.0


def test_suitable_blocks() -> None:
    thin = TokenGraph.from_adj_t(torch.eye(500, dtype=torch.bool))
    assert prepared.suitable_blocks(thin) is None and thin._blocks is None  # not built to find out
    assert prepared.suitable_blocks(window(500, 0)) is None
    twice = TokenGraph.from_edge_index(complete(40).edge_index.repeat(1, 2), 40)
    assert prepared.suitable_blocks(twice) is None is prepared.suitable_blocks(twice)
    assert prepared.suitable_blocks(TokenGraph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 0)) is None
    assert prepared.suitable_blocks(complete(0)) is None
    dense = TokenGraph.from_adj_t(torch.rand(100, 100) < 0.5)
    found = prepared.suitable_blocks(dense)
    assert found is not None and found is prepared.suitable_blocks(dense)
    assert (found.block_targets, found.block_sources) == prepared.block_size(dense)
    # A tile takes as long for narrow heads as for wide ones, an edge does not.
    masks = TokenGraph.from_adj_t(torch.rand(128, 128) < 0.12)
    assert prepared.suitable_blocks(masks, 64) is not None and prepared.suitable_blocks(masks, 8) is None
    assert prepared.suitable_blocks(masks.prepare("tiles"), 8) is masks._blocks  # told so


def test_block_size_follows_the_members() -> None:
    assert prepared.block_size(complete(30)) == (32, 32)
    assert prepared.block_size(blocks(list(range(0, 10000, 25)))) == (32, 32)
    assert prepared.block_size(complete(100, 30)) == (64, 32)
    assert prepared.block_size(complete(1 << 16, 200)) == (128, 64)


def test_equal_members() -> None:
    for ptr, source_ptr, equal in (
        ([0, 3, 6], None, True),
        ([0, 3, 5], None, False),
        ([0, 3, 6], [0, 5, 10], True),
        ([0, 3, 6], [0, 5, 9], False),
        ([0], None, False),
    ):
        assert blocks(ptr, source_ptr).equal_members == equal
    lazy = blocks([0, 3, 6], num_tokens=6, validate=False)
    assert not lazy.sizes_known
    assert lazy.equal_members and lazy.sizes_known
