"""The best sources of each row, as bits and as lists: ties, NaN and -inf by hand, Triton against the definition."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from graphattn_kernels import select_bits, select_lists
from graphattn_kernels.bits import _cut_implementation, pack, to_blocks, unpack
from graphattn_kernels.blocks import to_mask
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError
from graphattn_kernels.select_sources import order_sources

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]
BACKENDS = [pytest.param("reference"), pytest.param("triton", marks=needs_triton)]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("scores", "k", "chosen"),
    [
        ([1.0, 3.0, 2.0, 3.0], 2, [1, 3]),
        ([1.0, 3.0, 3.0, 3.0], 2, [1, 2]),  # of equal scores the lowest
        ([0.0, -0.0, 0.0, -1.0], 2, [0, 1]),  # the two zeros are equal
        ([-2.0, -1.0, -3.0, -1.5], 2, [1, 3]),
        ([-INF, 5.0, -INF, -INF], 3, [1]),  # never -inf
        ([INF, NAN, 1.0, INF], 2, [0, 1]),  # NaN before all, then the lowest of the infinite
        ([1.0, 2.0, 3.0, 4.0], 0, []),
        ([1.0, 2.0, 3.0, 4.0], 4, [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_by_hand(scores: list[float], k: int, chosen: list[int], dtype: torch.dtype, backend: str) -> None:
    x = torch.tensor([[scores]], dtype=dtype, device=DEVICE)
    mask = unpack(select_bits(x, k, backend=backend), 4)
    assert mask[0, 0].nonzero().flatten().tolist() == chosen
    index, length = select_lists(x, k, backend=backend)
    assert length.item() == len(chosen) and index[0, 0, : len(chosen)].tolist() == chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_forced_sources_come_on_top(backend: str) -> None:
    x = torch.tensor([[[9.0, 1.0, 2.0, 3.0], [9.0, 1.0, 2.0, 3.0]]], device=DEVICE)
    always = torch.tensor([True, False, False, False], device=DEVICE)
    full = torch.tensor([False, True], device=DEVICE)
    mask = unpack(select_bits(x, 1, always=always, full=full, backend=backend), 4)
    assert mask[0].int().tolist() == [[1, 0, 0, 1], [1, 1, 1, 1]]
    mask = unpack(select_bits(x, 1, keep_self=True, backend=backend), 4)
    assert mask[0].int().tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]  # itself does not count
    index, length = select_lists(x, 1, always=always, own=2, room=4, backend=backend)
    assert length.tolist() == [[3, 4]]  # the best of those that are not forced: 3, and 1
    assert index[0, 0, :3].tolist() == [0, 1, 3] and index[0, 1].tolist() == [0, 1, 2, 3]
    mask = unpack(select_bits(x, at=2.0, backend=backend), 4)
    assert mask[0].int().tolist() == [[1, 0, 0, 1]] * 2


@pytest.mark.parametrize(
    ("sources", "dtype"), [(1, torch.bfloat16), (33, torch.float16), (100, torch.float32), (102, torch.bfloat16)]
)
@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
def test_triton_is_the_definition(sources: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, sources, generator=random).mul(3).round().div(2).to(dtype).to(DEVICE)  # many ties
    always = (torch.rand(sources, generator=random) < 0.1).to(DEVICE)
    for k, forced in ((0, always), (sources // 3, None), (sources // 2, always), (sources, None)):
        bits = [select_bits(x, k, always=forced, backend=b) for b in ("triton", "reference")]
        assert torch.equal(*bits)
        (index, length), (expected, count) = (
            select_lists(x, k, always=forced, own=3, room=k + 13, backend=b) for b in ("triton", "reference")
        )
        assert torch.equal(length, count)
        used = torch.arange(index.shape[-1], device=DEVICE) < length.unsqueeze(-1)
        assert torch.equal(index[used], expected[used])
    assert torch.equal(*(select_bits(x, at=0.5, backend=b) for b in ("triton", "reference")))


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
@pytest.mark.parametrize(("rows", "sources"), [(1, 300), (1, 1000), (65, 1000), (1, 1025)])
def test_runs_of_any_length(rows: int, sources: int) -> None:
    """Of 4, 16 and 32 sources, which decide alone where equal scores are cut; of 8 that lie nowhere in particular."""
    x = torch.randn(1, rows, sources, generator=torch.Generator().manual_seed(0)).mul(2).round().half().to(DEVICE)
    always = torch.arange(sources, device=DEVICE) % 50 == 0
    bits = [select_bits(x, sources // 3, keep_self=True, backend=b) for b in ("triton", "reference")]
    assert torch.equal(*bits)
    lists = [select_lists(x, sources // 9, always=always, own=40, backend=b) for b in ("triton", "reference")]
    (index, length), (expected, count) = lists
    assert torch.equal(length, count)
    used = torch.arange(index.shape[-1], device=DEVICE) < length.unsqueeze(-1)
    assert torch.equal(index[used], expected[used])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_is_not_rounded_to_the_dtype_of_scores(backend: str) -> None:
    x = torch.tensor([[[0.3, 0.0, -0.0, 0.5]]], device=DEVICE)  # 0.3 in float16 is a little more
    for at, chosen in ((0.3, [[[1, 0, 0, 1]]]), (-1e-45, [[[1, 1, 1, 1]]])):
        mask = unpack(select_bits(x.half(), at=at, backend=backend), 4)
        assert mask.int().tolist() == chosen


def ordering_cases(sources: int) -> torch.Tensor:
    x = torch.randn(3, sources, generator=torch.Generator().manual_seed(0))
    x[1] = x[1].round()  # many ties
    x[2, ::3], x[2, 1::3], x[2, 2::5], x[2, 4::7] = INF, -INF, NAN, -0.0
    return x.to(DEVICE)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
@pytest.mark.parametrize("sources", [1, 33, 200])
def test_order_by_counting_is_a_stable_sort(sources: int) -> None:
    from graphattn_kernels.select_sources.ops import order_sources

    x = ordering_cases(sources)
    assert torch.equal(order_sources(x), x.argsort(dim=1, stable=True))
    half = x.bfloat16()
    assert torch.equal(order_sources(half), half.argsort(dim=1, stable=True))


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_search_ends_whatever_the_distribution(dtype: torch.dtype) -> None:
    """Keys far apart, all equal, all but one equal, two of a kind: an interpolation alone would crawl."""
    x = torch.zeros(1, 6, 200)
    x[0, 0] = torch.logspace(-30, 30, 200)
    x[0, 2, 77] = 1e30
    x[0, 3, ::2] = 1e-30
    x[0, 4] = -torch.logspace(-30, 30, 200)
    x[0, 5] = torch.tensor([NAN, -INF] * 100)
    x = x.to(dtype).to(DEVICE)
    for k in (1, 2, 99, 101, 199):
        ours, theirs = (select_bits(x, k, backend=b) for b in ("triton", "reference"))
        assert torch.equal(ours, theirs), k


def test_bits_there_and_back() -> None:
    mask = torch.rand(3, 70, 50, generator=torch.Generator().manual_seed(0)) < 0.3
    words = pack(mask)
    assert words.shape == (3, 70, 2) and torch.equal(unpack(words, 50), mask)
    for block in (32, 64, 128):
        blocks = to_blocks(words.to(DEVICE), 50, block, "h")
        assert torch.equal(to_mask(blocks).cpu(), mask)
        assert torch.equal(to_mask(blocks.T).cpu(), mask.mT)


@pytest.mark.parametrize("tokens", [1, 64, 70, 200])
def test_tiles_of_causal_bits_leave_out_half(tokens: int) -> None:
    mask = (torch.rand(3, tokens, tokens, generator=torch.Generator().manual_seed(0)) < 0.3).tril()
    for block in (32, 64, 128):
        blocks = to_blocks(pack(mask).to(DEVICE), tokens, block, "b", causal=True)
        assert torch.equal(to_mask(blocks).cpu(), mask) and torch.equal(to_mask(blocks.T).cpu(), mask.mT)
        rows = -(-tokens // block)
        for view in (blocks.by_target, blocks.by_source):
            assert view.num_tiles == 3 * rows * (rows + 1) // 2 == int(view.ptr[-1])
            for first, last in zip(view.ptr[:-1].tolist(), view.ptr[1:].tolist(), strict=True):
                assert bool((view.index[first:last].diff() == 1).all())


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
@pytest.mark.parametrize("block", [32, 64, 128])
def test_triton_cuts_and_turns_bits(block: int) -> None:
    from graphattn_kernels._bits_triton import cut

    words = pack(torch.rand(2, 70, 140, generator=torch.Generator().manual_seed(0)) < 0.3)
    rows, columns = -(-70 // block), -(-140 // block)
    ours = cut(words.to(DEVICE), rows, columns, block)
    for mine, theirs in zip(ours, _cut_implementation(words, rows, columns, block), strict=True):
        assert torch.equal(mine.cpu(), theirs)


def test_bad_input() -> None:
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ArgumentError, match="give k .* or at .*, not both"):
        select_bits(x)
    with pytest.raises(ArgumentTypeError, match="scores must be a floating tensor, got torch.int64"):
        select_bits(x.long(), 1)
    with pytest.raises(ArgumentError, match=r"scores must be \[copies, rows, S\]"):
        select_bits(x[0], 1)
    with pytest.raises(ArgumentError, match=r"floating tensor \[copies, S\], got torch.float32 \[1, 2, 3\]"):
        order_sources(x)
    with pytest.raises(ArgumentTypeError, match="k must be an int, got 1.5"):
        select_lists(x, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="own must be an int, got 1.5"):
        select_lists(x, 1, own=1.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="room must not be negative, got -1"):
        select_lists(x, 1, room=-1)
    with pytest.raises(ArgumentTypeError, match="scores must be a floating tensor, got torch.uint8"):
        select_bits(x.byte(), 1)
    with pytest.raises(ArgumentError, match=r"always must have shape \[3\]"):
        select_bits(x, 1, always=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ArgumentTypeError, match="full must be a bool tensor, got torch.float32"):
        select_bits(x, 1, full=torch.ones(2))


@pytest.mark.gpu
@pytest.mark.parametrize("sources", [197, 8192, 16_384, 20_000])
def test_order_of_wide_rows(sources: int) -> None:
    x = ordering_cases(sources)
    assert torch.equal(order_sources(x), x.argsort(dim=1, stable=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sources", [197, 4096, 4097, 16_384, 32_768])
def test_wide_rows(sources: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 40, sources, device="cuda").to(dtype)
    k = sources // 10
    assert torch.equal(*(select_bits(x, k, backend=b) for b in ("triton", "reference")))
    ours, theirs = (select_lists(x, k, backend=b) for b in ("triton", "reference"))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
