"""Components of grids: every backend against SciPy's, of masks and of any edges."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as csgraph_components
from torch import Tensor

from graphattn_kernels import agreed_edges, connected_components
from graphattn_kernels._grid import OFFSETS, shifted
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]
BACKENDS = [
    pytest.param("gather"),
    pytest.param("numba", marks=pytest.mark.skipif(CUDA, reason="tensors are on the GPU")),
    pytest.param("triton", marks=needs_triton),
]
EVERY = pytest.mark.parametrize("backend", BACKENDS)


def edges_of(mask: Tensor, neighbours: int = 8) -> Tensor:
    bits = torch.zeros_like(mask, dtype=torch.uint8)
    for c, step in enumerate(OFFSETS[neighbours]):
        bits += (mask & shifted(mask, *step)).to(torch.uint8) << c
    return bits


def by_csgraph(edges: Tensor, neighbours: int) -> tuple[np.ndarray, int]:
    """Labels of one image in the order of first pixels, by SciPy's components of the graph of its edges."""
    height, width = edges.shape
    bits, pixel = edges.cpu().numpy().ravel(), np.arange(height * width)
    ends = []
    for c, (down, right) in enumerate(OFFSETS[neighbours]):
        on = pixel[bits >> c & 1 == 1]
        ends.append(np.stack([on, on + down * width + right]))
    source, target = np.concatenate(ends, 1)
    _, member = csgraph_components(coo_array((np.ones(len(source)), (source, target)), (len(pixel),) * 2))
    _, first, number = np.unique(member[bits != 0], return_index=True, return_inverse=True)
    labels = np.zeros(len(pixel), np.int32)
    labels[bits != 0] = first.argsort().argsort()[number] + 1
    return labels.reshape(height, width), len(first)


def check(edges: Tensor, neighbours: int, backend: str) -> None:
    labels, counts = connected_components(edges, neighbours=neighbours, backend=backend)
    assert labels.dtype == counts.dtype == torch.int32
    assert labels.shape == edges.shape and counts.shape == edges.shape[:-2]
    for image, found, count in zip(
        edges.flatten(0, -3), labels.flatten(0, -3).cpu(), counts.flatten().tolist(), strict=True
    ):
        expected, number = by_csgraph(image, neighbours)
        assert number == count and np.array_equal(found.numpy(), expected)


@EVERY
@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_masks_have_scipys_labels(share: float, neighbours: int, backend: str) -> None:
    mask = torch.rand(2, 7, 18, device=DEVICE) < share
    edges = edges_of(mask, neighbours)
    labels, counts = connected_components(edges, neighbours=neighbours, backend=backend)
    structure = np.ones((3, 3)) if neighbours == 8 else None
    for found, count, bits in zip(labels.cpu().numpy(), counts.tolist(), edges.cpu().numpy(), strict=True):
        expected, number = ndimage.label(bits != 0, structure)
        assert count == number and np.array_equal(found, expected)
    check(edges, neighbours, backend)


@EVERY
@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("shape", [(2, 6, 18), (1, 1, 30), (1, 15, 1), (1, 1, 1), (2, 1, 2, 2)])
def test_any_mutual_edges(shape: tuple[int, ...], neighbours: int, backend: str) -> None:
    for threshold in (0.2, 0.45):
        p = torch.rand(*shape[:-2], neighbours, *shape[-2:], device=DEVICE)
        check(agreed_edges(p, threshold=threshold, logits=False, backend="gather"), neighbours, backend)


@EVERY
def test_chains_that_wind(backend: str) -> None:
    """A spiral and a comb: one component each, whose pixels meet late; their parts end at programs' borders."""
    spiral = torch.zeros(13, 13, dtype=torch.bool)
    y = x = 0
    dy, dx = 0, 1
    for steps in [12, *sum(([n, n] for n in range(12, 0, -2)), [])]:
        for _ in range(steps):
            spiral[y, x] = True
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    comb = torch.zeros(13, 13, dtype=torch.bool)
    comb[:, ::2] = True
    comb[-1] = True
    edges = edges_of(torch.stack([spiral, comb]).to(DEVICE), 4)
    _, counts = connected_components(edges, neighbours=4, backend=backend)
    assert counts.tolist() == [1, 1]
    check(edges, 4, backend)


@EVERY
def test_wider_than_a_program(backend: str) -> None:
    check(edges_of(torch.rand(1, 2, 300, device=DEVICE) < 0.7), 8, backend)


@EVERY
def test_bits_that_point_outside_join_nobody(backend: str) -> None:
    labels, counts = connected_components(
        torch.full((1, 2, 3, 5), 255, dtype=torch.uint8, device=DEVICE), backend=backend
    )
    assert (labels == 1).all() and counts.tolist() == [[1, 1]]


@EVERY
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_nothing(shape: tuple[int, ...], backend: str) -> None:
    labels, counts = connected_components(torch.zeros(shape, dtype=torch.uint8, device=DEVICE), backend=backend)
    assert labels.shape == shape and counts.tolist() == [0] * shape[0]
    labels, counts = connected_components(torch.zeros(2, 2, 2, dtype=torch.uint8, device=DEVICE), backend=backend)
    assert not labels.any() and counts.tolist() == [0, 0]


@pytest.mark.skipif(CUDA, reason="tensors are on the GPU")
def test_numba_does_not_depend_on_the_number_of_threads() -> None:
    edges = edges_of(torch.rand(7, 40, 40) < 0.6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = connected_components(edges, backend="numba")
        torch.set_num_threads(3)
        together = connected_components(edges, backend="numba")
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.triton
@pytest.mark.gpu
@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("kind", ["noise", "dense", "stripes", "full", "blobs", "comb"])
def test_full_size(kind: str, neighbours: int) -> None:
    size, random = 1024, torch.Generator(DEVICE).manual_seed(1)
    noise = torch.rand(8, size, size, generator=random, device=DEVICE)
    y, x = torch.meshgrid(*[torch.arange(size, device=DEVICE)] * 2, indexing="ij")
    mask = {
        "noise": noise < 0.42 if neighbours == 8 else noise < 0.6,  # near the threshold of percolation: long chains
        "dense": noise < 0.95,
        "stripes": ((x // 2 + y // 3) % 2 == 0).expand_as(noise),
        "full": noise < 2,
        "blobs": torch.nn.functional.avg_pool2d(noise[:, None], 31, 1, 15).squeeze(1) > 0.5,
        "comb": ((x % 2 == 0) | (y == size - 1)).expand_as(noise),
    }[kind]
    edges = edges_of(mask, neighbours)
    for _ in range(3):  # the order of the joins differs, the result does not
        labels, counts = connected_components(edges, neighbours=neighbours, backend="triton")
        expected, number = connected_components(edges.cpu(), neighbours=neighbours, backend="numba")
        assert torch.equal(labels.cpu(), expected) and torch.equal(counts.cpu(), number)


@pytest.mark.triton
@pytest.mark.gpu
def test_nothing_waits_for_the_device_and_cuda_graphs_hold_it() -> None:
    edges = edges_of(torch.rand(4, 128, 128, device=DEVICE) < 0.6)
    expected = connected_components(edges)
    torch.cuda.set_sync_debug_mode("error")
    try:
        connected_components(edges)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        connected_components(edges)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = connected_components(edges)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_opcheck_and_compile() -> None:
    edges = edges_of(torch.rand(2, 5, 6) < 0.6)
    torch.library.opcheck(torch.ops.graphattn.connected_components.default, (edges, 8, "gather"))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: connected_components(x)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(edges), connected_components(edges)[0] + 1)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentTypeError, match="edges must be a uint8 tensor .* got torch.bool"):
        connected_components(torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match=r"edges must be \[..., H, W\], got \[3\]"):
        connected_components(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="neighbours must be 4 or 8, got 6"):
        connected_components(torch.zeros(3, 3, dtype=torch.uint8), neighbours=6)
    with pytest.raises(ArgumentError, match="fewer than 2\\^31 pixels"):
        connected_components(torch.zeros((), dtype=torch.uint8).expand(2, 2**15, 2**15))
    with pytest.raises(BackendError, match="needs CPU tensors"):
        connected_components(torch.zeros(3, 3, dtype=torch.uint8, device="meta"), backend="numba")
