"""Votes of a connectivity cube: the definition by hand, every backend against the float64 reference."""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn_kernels import agreed_edges, bilateral_vote
from graphattn_kernels._grid import OFFSETS, reciprocal, shifted
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]
BACKENDS = [pytest.param("reference"), pytest.param("gather"), pytest.param("triton", marks=needs_triton)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def value_and_gradient(cube: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    cube = cube.detach().requires_grad_()
    out = bilateral_vote(cube, **options)
    random = torch.Generator().manual_seed(5)
    slope = torch.randn(out.shape, generator=random, dtype=torch.float64).to(DEVICE, torch.bfloat16).to(out.dtype)
    return out.detach(), torch.autograd.grad(out, cube, slope)[0]


def assert_like_reference(cube: Tensor, dtype: torch.dtype, backend: str, **options: Any) -> None:
    rounded = cube.to(dtype)
    ours = value_and_gradient(rounded, backend=backend, **options)
    theirs = value_and_gradient(rounded.double(), backend="reference", **options)
    for name, a, b in zip(("out", "gradient"), ours, theirs, strict=True):
        assert a.dtype == dtype and a.shape == b.shape and torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], msg=name)


# --- the definition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [4, 8])
def test_opposite_channels_have_opposite_offsets(channels: int) -> None:
    offsets = OFFSETS[channels]
    assert list(offsets) == sorted(offsets) and len(set(offsets)) == channels
    for c, (down, right) in enumerate(offsets):
        assert offsets[channels - 1 - c] == (-down, -right)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 6), (24, 17)])
def test_slicing_is_the_product_with_shift_matrices(size: tuple[int, int]) -> None:
    """As in the code of the successors, for every step, to 0 ulp; and nothing wraps around."""
    x = torch.randn(2, *size)
    for down, right in OFFSETS[8]:
        rows = torch.eye(size[0] + 2)[1 + down : 1 + down + size[0], 1:-1]  # row i takes row i + down
        columns = torch.eye(size[1] + 2)[1 + right : 1 + right + size[1], 1:-1]
        assert torch.equal(shifted(x, down, right), rows @ x @ columns.T)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_pixels_by_hand(backend: str) -> None:
    """Left says 0.5 of its right neighbour (channel 4), right says 0.25 of its left one (channel 3)."""
    cube = torch.full((8, 1, 2), 0.9, device=DEVICE)  # of neighbours that are not there
    cube[4, 0, 0], cube[3, 0, 1] = 0.5, 0.25
    out = bilateral_vote(cube, logits=False, backend=backend)
    torch.testing.assert_close(out.tolist(), [[0.125, 0.125]])
    mean = bilateral_vote(cube, logits=False, reduce="mean", backend=backend)
    torch.testing.assert_close(mean.tolist(), [[0.125 / 8] * 2])
    assert bilateral_vote(cube, logits=False, reduce="min", backend=backend).tolist() == [[0.0, 0.0]]
    logits = torch.where(torch.isfinite(cube.logit()), cube.logit(), 0.0)
    torch.testing.assert_close(bilateral_vote(logits, backend=backend), out)
    bits = agreed_edges(cube, threshold=0.2, logits=False, backend="gather" if backend == "reference" else backend)
    assert bits.tolist() == [[1 << 4, 1 << 3]]
    assert agreed_edges(cube, threshold=0.25, logits=False).tolist() == [[0, 0]]  # more than, not as much as


def test_reference_differentiates_twice() -> None:
    cube = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    for reduce in ("max", "mean"):
        options = {"reduce": reduce, "backend": "reference"}
        assert torch.autograd.gradcheck(lambda x, o=options: bilateral_vote(x, **o), cube)
        assert torch.autograd.gradgradcheck(lambda x, o=options: bilateral_vote(x, **o), cube)


def test_k_of_8_is_the_kth_largest() -> None:
    p = torch.rand(2, 8, 6, 7, dtype=torch.float64)
    votes = (p * reciprocal(p)).sort(1, descending=True).values
    for k in range(1, 9):
        torch.testing.assert_close(bilateral_vote(p, reduce=k, logits=False), votes[:, k - 1])
    assert torch.equal(bilateral_vote(p, reduce=1, logits=False), bilateral_vote(p, logits=False))
    assert torch.equal(bilateral_vote(p, reduce=8, logits=False), bilateral_vote(p, reduce="min", logits=False))


# --- every backend --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("reduce", ["max", "mean", "min", 3])
def test_gather_is_the_reference(reduce: str | int, channels: int, logits: bool) -> None:
    cube = torch.rand(2, 3, channels, 9, 7, dtype=torch.float64, device=DEVICE)
    assert_like_reference(cube * 6 - 3 if logits else cube, torch.float64, "gather", reduce=reduce, logits=logits)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
class TestTriton:
    @pytest.mark.parametrize(
        ("dtype", "shape", "reduce", "logits"),
        [
            (torch.float32, (2, 8, 33, 17), "max", True),
            (torch.float32, (1, 4, 9, 130), "mean", True),
            (torch.float32, (1, 8, 1, 1), "max", False),
            (torch.bfloat16, (2, 2, 8, 7, 19), "max", True),
            (torch.float16, (1, 8, 5, 40), "min", False),
            (torch.bfloat16, (1, 8, 5, 264), "max", True),  # two tiles beside each other, runs of 8
            (torch.float32, (1, 8, 6, 12), "mean", True),
            (torch.float32, (1, 4, 3, 6), "min", True),
        ],
        ids=str,
    )
    def test_like_the_reference(self, dtype: torch.dtype, shape: Any, reduce: str, logits: bool) -> None:
        cube = torch.rand(shape, dtype=torch.float64, device=DEVICE)
        assert_like_reference(cube * 6 - 3 if logits else cube, dtype, "triton", reduce=reduce, logits=logits)

    @pytest.mark.parametrize("channels", [4, 8])
    def test_agreed_edges_are_those_of_gather(self, channels: int) -> None:
        cube = torch.randn(2, channels, 9, 33, device=DEVICE)
        for options in ({}, {"threshold": 0.3}, {"threshold": 0.0}, {"threshold": 1.0}):
            ours = agreed_edges(cube, backend="triton", **options)
            assert torch.equal(ours, agreed_edges(cube, backend="gather", **options))

    def test_memory_that_nobody_wrote_is_not_read(self, nan_filled_allocations: None) -> None:
        cube = torch.randn(1, 8, 5, 19, device=DEVICE)
        assert all(x.isfinite().all() for x in value_and_gradient(cube, backend="triton"))

    def test_a_view_gives_the_same_bits(self) -> None:
        cube = torch.randn(2, 5, 21, 9, device=DEVICE)[..., :8].movedim(-1, 1)  # channels last
        ours = value_and_gradient(cube, backend="triton")
        theirs = value_and_gradient(cube.contiguous(), backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_opcheck(self) -> None:
        cube = torch.randn(1, 8, 4, 5, device=DEVICE, requires_grad=True)
        torch.library.opcheck(torch.ops.graphattn.bilateral_vote.default, (cube, 1, True, "triton"))

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("size", [(1024, 1024), (1023, 777)])
    def test_full_size(self, dtype: torch.dtype, size: tuple[int, int]) -> None:
        cube = torch.randn(4, 8, *size, device=DEVICE, dtype=torch.float64)
        for reduce in ("max", "mean"):
            ours = value_and_gradient(cube.to(dtype), backend="triton", reduce=reduce)
            theirs = value_and_gradient(cube.to(dtype).double(), backend="reference", reduce=reduce)
            for a, b in zip(ours, theirs, strict=True):
                wrong = (a.double() - b).abs() > TOLERANCE[dtype] * (1 + b.abs())
                assert wrong.double().mean() < 1e-5  # of votes that are equal but for rounding, either is the largest
            torch.testing.assert_close(ours[0].double(), theirs[0], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        ours = agreed_edges(cube.float(), backend="triton")
        assert torch.equal(ours, agreed_edges(cube.float(), backend="gather"))

    @pytest.mark.gpu
    def test_more_than_two_to_the_31_numbers(self) -> None:
        cube = torch.randn(40, 8, 2048, 4096, device=DEVICE, dtype=torch.bfloat16)  # 2.7e9, 5 GiB
        out = bilateral_vote(cube, backend="triton")
        torch.testing.assert_close(out[-1], bilateral_vote(cube[-1], backend="triton"), rtol=0, atol=0)

    @pytest.mark.gpu
    def test_cuda_graph(self) -> None:
        cube = torch.randn(2, 8, 64, 64, device=DEVICE)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())

        def step() -> tuple[Tensor, Tensor]:
            out = bilateral_vote(leaf)
            return out, torch.autograd.grad(out.sum(), leaf)[0]

        with torch.cuda.stream(stream):
            # Autograd remembers where a leaf was used first: the default stream cannot be captured.
            leaf = cube.clone().requires_grad_()
            for _ in range(3):
                expected = step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            got = step()
        for x in got:
            x.detach().fill_(math.nan)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_equals_goes_to_the_first(backend: str) -> None:
    cube = torch.zeros(8, 3, 3, device=DEVICE, requires_grad=True)
    bilateral_vote(cube, backend=backend)[1, 1].backward()
    where = cube.grad.nonzero().tolist()
    assert where == [[0, 1, 1], [7, 0, 0]]  # channel 0 of the middle, and what its neighbour says of it


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:overflow")  # of the interpreter
@pytest.mark.parametrize("reduce", ["max", "mean", "min"])
def test_certain_pixels(reduce: str, backend: str) -> None:
    """Logits whose probabilities are 0 and 1, infinite ones among them."""
    choice = torch.tensor([-math.inf, -200.0, -90.0, 90.0, 200.0, math.inf], device=DEVICE)
    cube = choice[torch.randint(6, (8, 4, 5), device=DEVICE)]
    out, gradient = value_and_gradient(cube, reduce=reduce, backend=backend)
    torch.testing.assert_close(out, bilateral_vote((cube > 0).float(), reduce=reduce, logits=False))
    assert (gradient.abs() < 1e-20).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_kept(backend: str) -> None:
    cube = torch.zeros(8, 4, 5, device=DEVICE)
    cube[4, 1, 1] = math.nan
    bad = bilateral_vote(cube, backend=backend).isnan()
    assert bad.nonzero().tolist() == [[1, 1], [1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 8, 0, 3), (2, 4, 3, 0)])
def test_nothing(shape: tuple[int, ...], backend: str) -> None:
    cube = torch.zeros(shape, device=DEVICE, requires_grad=True)
    out = bilateral_vote(cube, backend=backend)
    assert out.shape == (shape[0], *shape[2:])
    assert torch.autograd.grad(out.sum(), cube)[0].shape == shape


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_threshold_is_not_rounded_to_the_dtype_of_the_cube(dtype: torch.dtype, backend: str) -> None:
    cube = torch.full((1, 4, 1, 2), 0.3, dtype=dtype, device=DEVICE)
    assert (cube.double() > 0.3).all()  # rounded up
    assert agreed_edges(cube, threshold=0.3, logits=False, backend=backend).flatten().tolist() == [4, 2]


def test_opcheck_of_gather() -> None:
    cube = torch.randn(1, 8, 4, 5, requires_grad=True, dtype=torch.float64)
    for rank in (0, 1, 3):
        torch.library.opcheck(torch.ops.graphattn.bilateral_vote.default, (cube, rank, True, "gather"))
    torch.library.opcheck(torch.ops.graphattn.agreed_edges.default, (cube.detach(), 0.2, "gather"))


def test_compile() -> None:
    torch._dynamo.reset()

    def f(cube: Tensor) -> Tensor:
        return bilateral_vote(cube).square().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((5, 7), (9, 4)):
        cube = torch.randn(2, 8, *size, device=DEVICE, requires_grad=True)
        torch.testing.assert_close(torch.autograd.grad(compiled(cube), cube), torch.autograd.grad(f(cube), cube))


def test_bad_arguments() -> None:
    cube = torch.zeros(8, 3, 3)
    with pytest.raises(ArgumentTypeError, match="cube must be a tensor, got list"):
        bilateral_vote([1.0])
    with pytest.raises(ArgumentTypeError, match="cube must be a floating tensor, got torch.int64"):
        bilateral_vote(cube.long())
    with pytest.raises(ArgumentError, match=r"K = 4 or 8 channels, one for each neighbour, got \[7, 3, 3\]"):
        bilateral_vote(cube[1:])
    with pytest.raises(ArgumentError, match="reduce must be 'max', 'mean', 'min' or a number in 1..8, got 9"):
        bilateral_vote(cube, reduce=9)
    with pytest.raises(ArgumentError, match="threshold must be a probability in 0..1, got 2"):
        agreed_edges(cube, threshold=2)
    with pytest.raises(ArgumentError, match="backend must be"):
        bilateral_vote(cube, backend="fast")
    with pytest.raises(BackendError, match="no such implementation"):
        bilateral_vote(cube.cpu(), backend="numba")
    if TRITON:
        with pytest.raises(BackendError, match="float16, bfloat16 or float32, got torch.float64"):
            bilateral_vote(cube.double().to(DEVICE), backend="triton")
        with pytest.raises(BackendError, match="not the 3-th largest"):
            bilateral_vote(cube.to(DEVICE), reduce=3, backend="triton")
