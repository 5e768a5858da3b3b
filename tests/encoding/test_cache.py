from __future__ import annotations

import os

import networkx as nx
import numpy as np
import pytest
import torch

from graphattn.encoding import EncodingCache, HopPairs, graph_hash, hop_pairs, laplacian_pe, random_walk_pe
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph


@pytest.fixture
def graph(graph_of):
    return graph_of(nx.cycle_graph(7))


calls: list[int] = []
NPY = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(117)
    + b"\n"
    + bytes(8)
)


def counted(graph: TokenGraph, k: int) -> torch.Tensor:
    calls.append(k)
    return laplacian_pe(graph, k)


def test_second_time_from_disk(tmp_path, graph):
    calls.clear()
    cache = EncodingCache(tmp_path / "deep" / "folder")
    first = cache.compute(counted, graph, 3)
    assert torch.equal(cache.compute(counted, graph, 3), first) and calls == [3]
    assert not torch.equal(cache.compute(counted, graph, 2), first) and calls == [3, 2]
    assert torch.equal(EncodingCache(cache.root).compute(counted, graph, 3), first) and calls == [3, 2]


def test_named_results(tmp_path, graph):
    cache = EncodingCache(tmp_path)
    for _ in range(2):
        found = cache.compute(laplacian_pe, graph, 3, return_eigenvalues=True)
        expected = laplacian_pe(graph, 3, return_eigenvalues=True)
        assert type(found) is type(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert isinstance(cache.compute(hop_pairs, graph, 3), HopPairs)


def test_key_is_graph_function_and_parameters(tmp_path, graph, graph_of, batch_of):
    cache = EncodingCache(tmp_path)
    other = graph_of(nx.path_graph(7))
    paths = [
        cache.path(laplacian_pe, graph, 3),
        cache.path(laplacian_pe, graph, 4),
        cache.path(laplacian_pe, graph, 3, sign="abs"),
        cache.path(random_walk_pe, graph, 3),
        cache.path(laplacian_pe, other, 3),
        cache.path(laplacian_pe, batch_of([graph]), 3),
    ]
    assert len(set(paths)) == len(paths)


def test_graph_hash_ignores_the_order_of_edges(graph):
    shuffled = TokenGraph.from_edge_index(graph.edge_index[:, torch.randperm(14)], 7)
    assert graph_hash(shuffled) == graph_hash(graph)
    assert graph_hash(TokenGraph.from_edge_index(graph.edge_index, 8)) != graph_hash(graph)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"not a zip", NPY])
def test_damaged_file_is_computed_again(tmp_path, graph, content):
    cache = EncodingCache(tmp_path)
    expected = cache.compute(laplacian_pe, graph, 3)
    path = cache.path(laplacian_pe, graph, 3)
    path.write_bytes(content)
    assert torch.equal(cache.compute(laplacian_pe, graph, 3), expected)
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file["value"], expected.numpy())


def test_truncated_file_is_computed_again(tmp_path, graph):
    cache = EncodingCache(tmp_path)
    expected = cache.compute(laplacian_pe, graph, 3)
    path = cache.path(laplacian_pe, graph, 3)
    path.write_bytes(path.read_bytes()[:-40])
    assert torch.equal(cache.compute(laplacian_pe, graph, 3), expected)


@pytest.mark.parametrize(("offsets", "value"), [((10, 8), 99), ((8, 6), 1)], ids=["unknown compression", "password"])
def test_damage_of_the_headers_is_computed_again(tmp_path, graph, offsets, value):
    cache = EncodingCache(tmp_path)
    expected = cache.compute(laplacian_pe, graph, 3)
    path = cache.path(laplacian_pe, graph, 3)
    content = bytearray(path.read_bytes())
    for signature, offset in zip((b"PK\x01\x02", b"PK\x03\x04"), offsets, strict=True):
        content[content.index(signature) + offset] = value
    path.write_bytes(content)
    with pytest.raises((NotImplementedError, RuntimeError)), np.load(path, allow_pickle=False) as file:
        file["value"]
    assert torch.equal(cache.compute(laplacian_pe, graph, 3), expected)


def test_others_may_read_what_the_mask_lets_them(tmp_path, graph):
    cache, plain = EncodingCache(tmp_path), tmp_path / "plain"
    cache.compute(laplacian_pe, graph, 3)
    plain.write_text("x")
    assert cache.path(laplacian_pe, graph, 3).stat().st_mode == plain.stat().st_mode


def test_pickles_are_not_loaded(tmp_path, graph):
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    cache = EncodingCache(tmp_path)
    path = cache.path(laplacian_pe, graph, 3)
    path.parent.mkdir(parents=True)
    np.savez(path, value=np.array([Evil()], dtype=object))
    assert torch.equal(cache.compute(laplacian_pe, graph, 3), laplacian_pe(graph, 3))
    assert not (tmp_path / "pwned").exists()


def test_interrupted_write_leaves_nothing(tmp_path, graph, monkeypatch):
    cache = EncodingCache(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        cache.compute(laplacian_pe, graph, 3)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_generators_are_refused(tmp_path, graph):
    with pytest.raises(ArgumentError, match="generator cannot be cached"):
        EncodingCache(tmp_path).compute(
            laplacian_pe, graph, 3, sign="random", generator=torch.Generator().manual_seed(0)
        )


def test_bfloat16_is_refused(tmp_path, graph):
    with pytest.raises(ArgumentError, match="cache float32"):
        EncodingCache(tmp_path).compute(laplacian_pe, graph, 3, dtype=torch.bfloat16)


def test_other_results_are_refused(tmp_path, graph):
    with pytest.raises(ArgumentError, match="function must return a tensor"):
        EncodingCache(tmp_path).compute(lambda graph: 3, graph)
