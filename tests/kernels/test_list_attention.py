"""Attention over lists of sources: the definition by hand, every backend against the float64 reference."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn_kernels import SourceLists, list_attention
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError
from graphattn_kernels.list_attention.api import select
from graphattn_kernels.list_attention.impl import gather
from graphattn_kernels.lists import to_mask
from tests.kernels.judge import nan_filled_allocations

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]
BACKENDS = [pytest.param("gather"), pytest.param("triton", marks=needs_triton)]
NAMES = "out", "lse", "dq", "dk", "dv"
# Relative errors: roundings of the result, and of weights and partial sums that are held in the dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}

CASES: dict[str, dict[str, Any]] = {
    "one block a program": {"block": 16, "room": 20},
    "a list for each head and entry, not full": {"leading": "bh", "block": 20, "room": 20, "ragged": True},
    "one list, causal, with itself": {
        "leading": "h",
        "sources": 40,
        "block": 40,
        "room": 20,
        "causal": True,
        "own": True,
    },
    "causal, not full": {"leading": "b", "sources": 40, "block": 40, "room": 21, "causal": True, "ragged": True},
    "several lists, causal": {"leading": "b", "sources": 40, "block": 8, "room": 21, "causal": True, "own": True},
    "several lists, causal, places": {"sources": 40, "block": 8, "room": 30, "causal": True, "placed": True},
    "places, not itself twice": {"sources": 40, "block": 8, "room": 11, "placed": True, "own": True},
    "several strips, places, not full": {"targets": 75, "block": 75, "room": 20, "placed": True, "ragged": True},
    "a single target": {"targets": 1, "block": 1, "room": 3},
    "empty lists": {"block": 16, "room": 0},
}


def make(
    leading: str = "", targets: int = 40, sources: int = 27, block: int = 16, room: int = 8, *, ragged: bool = False,
    causal: bool = False, own: bool = False, placed: bool = False, batch: int = 2, heads: int = 2, seed: int = 0,
) -> SourceLists:  # fmt: skip
    """Random lists, some of them empty where they are ragged, some targets nowhere where they are placed."""
    random = torch.Generator().manual_seed(seed)
    copies = (batch if "b" in leading else 1) * (heads if "h" in leading else 1)
    order = None
    if placed:
        places = torch.randperm(targets + 3, generator=random)
        places = torch.where(places < targets - (targets > 2), places, -1)  # the last target stands nowhere
        order = torch.nn.functional.pad(places.int(), (0, -len(places) % block), value=-1)[None]
    blocks = -(-targets // block) if order is None else order.shape[1] // block
    rows = [torch.randperm(sources, generator=random)[:room] for _ in range(copies * blocks)]
    index = torch.stack(rows).view(copies, blocks, room).int()
    length = None
    if ragged:
        length = torch.randint(0, room + 1, (copies, blocks), generator=random).int()
        length[0, 0] = 0
    if causal:
        index = index.sort(-1).values
    moved = (None if x is None else x.to(DEVICE) for x in (index, length, order))
    return SourceLists(*moved, targets, sources, block, leading, causal, own, False)  # type: ignore[arg-type]


def tokens(lists: SourceLists, batch: int = 2, heads: int = 2, widths: tuple[int, int] = (20, 12)) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    shapes = (lists.num_targets, widths[0]), (lists.num_sources, widths[0]), (lists.num_sources, widths[1])
    return [torch.randn(batch, n, heads, d, generator=random, dtype=torch.float64).to(DEVICE) for n, d in shapes]


def values_and_gradients(lists: SourceLists, inputs: list[Tensor], dtype: torch.dtype, **options: Any) -> list[Tensor]:
    given = [x.to(dtype).requires_grad_() for x in inputs]
    random = torch.Generator().manual_seed(5)
    with nan_filled_allocations():
        out, lse = list_attention(lists, *given, **options)
        assert lse is not None
        finite = torch.where(torch.isfinite(lse), lse, 0.0)
        shaped = [torch.randn(y.shape, generator=random, dtype=torch.float64) for y in (out, lse)]
        slopes = [x.to(DEVICE, y.dtype) for x, y in zip(shaped, (out, lse), strict=True)]
        grads = torch.autograd.grad((out, finite), given, slopes)
    return [out.detach(), finite.detach(), *grads]


def assert_like_reference(lists: SourceLists, inputs: list[Tensor], dtype: torch.dtype, **options: Any) -> None:
    rounded = [x.to(dtype).double() for x in inputs]  # the reference sees what the kernel sees
    ours = values_and_gradients(lists, rounded, dtype, **options)
    theirs = values_and_gradients(lists, rounded, torch.float64, **{**options, "backend": "reference"})
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        error = (a.double() - b).norm() / b.norm().clamp(min=1e-3)
        assert error < TOLERANCE[dtype], f"{name}: {error:.1e}"


# --- the definition -------------------------------------------------------------------------------------------


def test_the_mask_by_hand() -> None:
    index = torch.tensor([[[0, 2], [3, 1]]], dtype=torch.int32)
    length = torch.tensor([[2, 1]], dtype=torch.int32)
    lists = SourceLists(index, length, None, 3, 4, 2, "", False, False, False)
    assert to_mask(lists)[0].int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    order = torch.tensor([[2, -1, 0, 3]], dtype=torch.int32)  # target 1 stands nowhere
    lists = SourceLists(index, None, order, 4, 4, 2, "", True, True, False)
    assert to_mask(lists)[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize("backend", [pytest.param("reference"), *BACKENDS])
def test_two_tokens_by_hand(backend: str) -> None:
    """Scores 0 and log 3: weights 1/4 and 3/4; the second block reads nobody."""
    lists = SourceLists(
        torch.tensor([[[1, 0], [0, 0]]], device=DEVICE), torch.tensor([[2, 0]], device=DEVICE).int(), None, 2, 2, 1, "",
        False, False, False,
    )  # fmt: skip
    k = torch.tensor([0.0, 1.0986123], device=DEVICE).view(2, 1, 1)
    v = torch.tensor([4.0, 8.0], device=DEVICE).view(2, 1, 1)
    out, lse = list_attention(lists, torch.ones_like(k), k, v, scale=1.0, backend=backend)
    assert lse is not None
    torch.testing.assert_close(out.flatten().tolist(), [7.0, 0.0])
    torch.testing.assert_close(lse.flatten().tolist(), [1.3862944, float("-inf")])


def test_gradcheck() -> None:
    lists = make(targets=5, sources=5, block=2, room=3, own=True, causal=True)
    given = [x.requires_grad_() for x in tokens(lists, 1, 1, (2, 2))]
    for backend in ("reference", "gather"):
        f = lambda *x: list_attention(lists, *x, backend=backend)  # noqa: B023, E731
        assert torch.autograd.gradcheck(f, given)
        assert torch.autograd.gradgradcheck(f, given)


# --- every backend --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_gather_is_the_reference(case: str, clamp: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_ELEMENTS", {"cpu": 3000, "cuda": 3000})  # some blocks after others
    lists = make(**CASES[case])
    assert_like_reference(lists, tokens(lists), torch.float64, backend="gather", clamp=clamp)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
class TestTriton:
    @pytest.mark.parametrize(("dtype", "clamp"), [(torch.float32, 0.7), (torch.float32, None), (torch.bfloat16, None)])
    @pytest.mark.parametrize("case", CASES)
    def test_is_the_reference(self, case: str, dtype: torch.dtype, clamp: float | None) -> None:
        lists = make(**CASES[case])
        assert_like_reference(lists, tokens(lists), dtype, backend="triton", clamp=clamp)

    def test_half_and_negative_scale(self) -> None:
        lists = make(leading="h", block=20, room=15)
        assert_like_reference(lists, tokens(lists), torch.float16, backend="triton")
        assert_like_reference(lists, tokens(lists), torch.float32, backend="triton", scale=-0.3)

    def test_strides(self) -> None:
        lists = make(leading="b", block=16, room=9)
        q, k, v = tokens(lists, widths=(8, 8))
        packed = torch.stack([k, v], 3).float()  # heads of k and v side by side
        plain = list_attention(lists, q.float(), k.float(), v.float(), backend="triton")
        strided = list_attention(lists, q.float(), packed[..., 0, :], packed[..., 1, :], backend="triton")
        torch.testing.assert_close(strided, plain)

    def test_the_same_bits_again(self) -> None:
        lists = make(leading="h", block=16, room=20)
        first = values_and_gradients(lists, tokens(lists), torch.float32, backend="triton")
        again = values_and_gradients(lists, tokens(lists), torch.float32, backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_no_second_derivative(self) -> None:
        lists = make(targets=4, sources=4, block=4, room=2)
        x = torch.randn(4, 1, 4, device=DEVICE, requires_grad=True)
        out, _ = list_attention(lists, x, x, x, backend="triton")
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="reference"):
            grad.sum().backward()

    def test_opcheck(self) -> None:
        lists = make(leading="h", block=16, room=5, ragged=True)
        x = [y.float().requires_grad_() for y in tokens(lists, widths=(4, 4))]
        torch.library.opcheck(torch.ops.graphattn.list_attention.default, (*lists, *x, 0.5, None))


# --- PyTorch's dense attention over gathered rows ---------------------------------------------------------------


@pytest.mark.parametrize("leading", ["", "b"])
@pytest.mark.parametrize(("blocks", "whole"), [(1, False), (4, True), (4, False)])
def test_dense_is_the_reference(leading: str, blocks: int, whole: bool) -> None:
    """Disjoint lists, in one block or several, of all sources or some, with and without an order of the targets."""
    random = torch.Generator().manual_seed(0)
    copies, sources, targets = 2 if leading else 1, 24, 20
    room = sources // blocks - (0 if whole else 2)
    index = torch.stack([torch.randperm(sources, generator=random)[: blocks * room] for _ in range(copies)])
    for order in (None, torch.randperm(targets, generator=random).int()[None]):
        lists = SourceLists(
            index.view(copies, blocks, room), None, order, targets, sources, targets // blocks, leading, False, False,
            True,
        )  # fmt: skip
        given = [x.requires_grad_() for x in tokens(lists)]
        results = []
        for backend in ("dense", "reference"):
            out, lse = list_attention(lists, *given, need_lse=False, backend=backend)
            assert (lse is None) == (backend == "dense")
            results.append((out, *torch.autograd.grad(out.sin().sum(), given)))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)
        assert select("auto", lists, *given[:2], need_lse=False) == "dense"
        unread = torch.ones(copies, sources, dtype=torch.bool).scatter_(1, index, False)
        if leading == "b":
            assert (results[0][2][unread] == 0).all()  # what no list names has no gradient


def test_dense_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of a block in parts, each with its own gradients of k and v, which are added."""
    monkeypatch.setattr(gather, "_PROGRAMS", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(gather, "_QUERIES", 4)
    asked = []
    monkeypatch.setattr(gather, "_parts", lambda *x, f=gather._parts: asked.append(f(*x)) or asked[-1])
    index = torch.randperm(12, generator=torch.Generator().manual_seed(0)).view(1, 2, 6)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1)).int()[None]
    for target in (None, order):
        moved = (None if x is None else x.to(DEVICE) for x in (index, None, target))
        lists = SourceLists(*moved, 32, 12, 16, "", False, False, True)  # type: ignore[arg-type]
        given = [x.requires_grad_() for x in tokens(lists)]
        results = []
        for backend in ("dense", "reference"):
            out, _ = list_attention(lists, *given, need_lse=False, backend=backend)
            results.append((out, *torch.autograd.grad(out.sin().sum(), given)))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert asked == [4, 4]  # no part has fewer than 4 of the 16 queries
    with torch.no_grad():
        list_attention(lists, *given, need_lse=False, backend="dense")
    assert len(asked) == 2  # without a gradient there is nothing to fill


# --- arguments ------------------------------------------------------------------------------------------------


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = make(block=16, room=5)
    x = torch.zeros(2, 40, 2, 4)
    assert select("auto", lists, x, x) == "gather"
    with pytest.raises(BackendError, match="'dense' cannot run: lists have sources in common"):
        select("dense", lists, x, x, need_lse=False)
    with pytest.raises(BackendError, match="no log-sum-exp"):
        select("dense", lists, x, x)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    with pytest.raises(BackendError, match="got torch.float64; use 'gather'"):
        select("triton", lists, x.double(), x.double())


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (ArgumentTypeError, "v must be a tensor, got list", {"v": [1.0]}),
        (ArgumentTypeError, "k must have the dtype and device of q", {"k": torch.ones(2, 27, 2, 4).double()}),
        (ArgumentError, r"q must be \[B, T, H, D\] or", {"q": torch.ones(2, 5)}),
        (ArgumentError, r"one row for each source \(27\)", {"v": torch.ones(2, 5, 2, 4)}),
        (ArgumentError, "k must have the channels of q, 4, got 5", {"k": torch.ones(2, 27, 2, 5)}),
        (ArgumentError, "clamp must be positive, got 0", {"clamp": 0.0}),
        (ArgumentError, "backend must be", {"backend": "best"}),
        (BackendError, "'numba' cannot run: this operation has no such", {"backend": "numba"}),
        (
            ArgumentError,
            "3 copies, the lists have 2",
            {x: torch.ones(2, n, 3, 4) for x, n in zip("qkv", (40, 27, 27), strict=True)},
        ),
    ],
)
def test_bad_input(error: type[Exception], match: str, given: dict[str, Any]) -> None:
    lists = make("h", block=16, room=5)._replace(index=make("h", block=16, room=5).index.cpu())
    good = {"q": torch.ones(2, 40, 2, 4), "k": torch.ones(2, 27, 2, 4), "v": torch.ones(2, 27, 2, 4)}
    with pytest.raises(error, match=match):
        list_attention(lists, **{**good, **given})


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("own", [False, True])
def test_autocast_casts_the_arguments_only(own: bool, backend: str) -> None:
    lists = make(sources=40)._replace(own=own)
    x = [y.float() for y in tokens(lists)]
    with torch.autocast(DEVICE, torch.bfloat16):
        found = list_attention(lists, *x, backend=backend)
    expected = list_attention(lists, *(y.bfloat16() for y in x), backend=backend)
    for a, b in zip(found, expected, strict=True):
        assert a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("backend", ["reference", "gather", "dense"])
@pytest.mark.parametrize("placed", [False, True])
def test_no_targets(placed: bool, backend: str) -> None:
    index = torch.zeros((1, 0, 4), dtype=torch.int32, device=DEVICE)
    order = index.new_zeros((1, 0)) if placed else None
    lists = SourceLists(index, None, order, 0, 27, 16, "", causal=False, own=False, disjoint=True)
    out, _ = list_attention(lists, *(x.float() for x in tokens(lists)), need_lse=False, backend=backend)
    assert out.shape == (2, 0, 2, 12)


# --- on a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
class TestGpu:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("width", [16, 40, 64, 128, 256])
    def test_real_sizes(self, width: int, dtype: torch.dtype) -> None:
        sizes = {"targets": 1000, "sources": 1000, "batch": 2, "heads": 3}
        for options in (
            {"leading": "bh", "block": 64, "room": 150},
            {"leading": "h", "block": 128, "room": 100, "ragged": True},
            {"leading": "b", "block": 1000, "room": 250, "causal": True, "own": True},
            {"leading": "b", "block": 64, "room": 250, "causal": True, "own": True},
            {"leading": "", "block": 100, "room": 333, "placed": True},
        ):
            lists = make(**{**sizes, **options})  # type: ignore[arg-type]
            assert_like_reference(lists, tokens(lists, 2, 3, (width, width)), dtype, backend="triton")

    def test_a_hundred_repeats_give_the_same_bits(self) -> None:
        lists = make("h", 4096, 4096, 64, 400, heads=4)
        first = values_and_gradients(lists, tokens(lists, 2, 4, (64, 64)), torch.bfloat16, backend="triton")
        for _ in range(100):
            again = values_and_gradients(lists, tokens(lists, 2, 4, (64, 64)), torch.bfloat16, backend="triton")
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
