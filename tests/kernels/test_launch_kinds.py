"""What tiles and lists say of their launches: one kind stands for one compiled kernel, and plans are made once."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn_kernels.blocks import flat, from_mask
from graphattn_kernels.lists import SourceLists
from tests.kernels.launches import DEVICE, TRITON, Recorder, moved, needs_device

pytestmark = needs_device


def module(name: str) -> Any:
    return importlib.import_module(f"graphattn_kernels.{name}.impl.triton.launch")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    for name in ("block_attention", "list_attention"):
        monkeypatch.setattr(module(name), "launch", found)
    for name in ("ends", "transpose"):
        monkeypatch.setattr(
            importlib.import_module(f"graphattn_kernels.list_attention.impl.triton.{name}"), "launch", found
        )
    return found


def inputs(tokens: int, heads: int, widths: tuple[int, int], dtype: torch.dtype, layout: str) -> list[Tensor]:
    """q, k and v: by themselves, in one packed projection, or where neither channels nor addresses are as wanted."""
    d, dv = widths
    if layout == "packed":
        packed = torch.zeros(2, tokens, heads, d + d + dv, device=DEVICE, dtype=dtype)
        return list(packed.split([d, d, dv], -1))
    if layout == "odd":
        strided = torch.zeros(2, tokens, heads, 2 * d, device=DEVICE, dtype=dtype)[..., ::2]
        shifted = torch.zeros(2, tokens, heads, dv + 1, device=DEVICE, dtype=dtype)[..., 1:]
        return [strided, strided, shifted]
    return [torch.zeros(2, tokens, heads, n, device=DEVICE, dtype=dtype) for n in (d, d, dv)]


def both_ways(
    kernels: Any,
    graph: Any,
    x: list[Tensor],
    scale: float,
    clamp: float | None,
    with_lse: bool,
    saved: Callable[[Tensor], Tensor] = lambda y: y,
) -> None:
    out, lse = kernels.forward(graph, *x, scale, clamp)
    assert out.shape == (*x[0].shape[:3], x[2].shape[3]) and out.dtype == x[2].dtype
    assert lse.shape == x[0].shape[:3] and lse.dtype == torch.float32
    out, lse = saved(out), saved(lse)
    grads = kernels.backward(graph, *x, scale, clamp, out, lse, out, lse if with_lse else None)
    assert all(grad.shape == y.shape and grad.is_contiguous() for grad, y in zip(grads, x, strict=True))


CALLS = list(
    product(
        [(16, 16), (64, 48)],
        [torch.float32, torch.float16],
        ["plain", "packed", "odd"],
        [(0.5, None), (-0.5, None), (0.25, None), (0.5, 2.0)],
        [False, True],
    )
)


@pytest.mark.parametrize("chunk", [1, 32])
def test_tiles(chunk: int, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and cut rows, tokens in order and not, on each side."""
    monkeypatch.setattr(module("block_attention"), "_CHUNK", chunk)
    order = torch.randperm(96).int().to(DEVICE)
    for leading, copies in (("", 1), ("h", 3), ("bh", 6)):
        for n, target, source in ((96, None, None), (100, None, None), (96, order, None), (96, None, order)):
            mask = torch.ones(copies, n, n, dtype=torch.bool, device=DEVICE)
            blocks = from_mask(mask, 32, 32, target=target, source=source, leading=leading)
            for widths, dtype, layout, options, with_lse in CALLS:
                both_ways(module("block_attention"), blocks, inputs(n, 3, widths, dtype, layout), *options, with_lse)
    assert len(recorder.seen) < recorder.launches  # some are of one kind


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_lists(causal: bool, own: bool, recorder: Recorder) -> None:
    """Lists of one length and of several, of one and of many targets, with targets in order and not."""
    for leading, copies in (("", 1), ("h", 3)):
        for block, dtype in ((16, torch.int32), (16, torch.int64), (256, torch.int32)):
            index = torch.arange(20, device=DEVICE, dtype=dtype).expand(copies, 256 // block, -1).contiguous()
            length = torch.full(index.shape[:2], 7, dtype=torch.int32, device=DEVICE)
            order = torch.randperm(256).int().to(DEVICE).view(1, -1)
            for lengths, target in ((None, None), (length, None), (None, order), (length, order.repeat(copies, 1))):
                for disjoint in (False, True):
                    lists = SourceLists(index, lengths, target, 256, 256, block, leading, causal, own, disjoint)
                    for widths, kind, layout, options, with_lse in CALLS:
                        x = inputs(256, 3, widths, kind, layout)
                        both_ways(module("list_attention"), lists, x, *options, with_lse)
    assert len(recorder.seen) < recorder.launches


def strange_inputs(n: int) -> Iterator[list[Tensor]]:
    """Layouts and sizes that differ from each other in one thing."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=DEVICE, dtype=torch.float16)

    plain = zeros(2, n, 3, 16)
    yield [plain, plain, plain]
    yield [plain[:1], plain[:1], plain[:1]]
    yield [plain[:, :, :1], plain[:, :, :1], plain[:, :, :1]]
    yield [plain, plain, zeros(2, n, 3, 1)]
    yield [plain[..., :1], plain[..., :1], plain]
    shared = zeros(2, n, 1, 16).expand(-1, -1, 3, -1)
    shifted = zeros(2, n, 1, 17)[..., 1:].expand(-1, -1, 3, -1)
    turned = zeros(2, 3, n, 16).transpose(1, 2)
    far = [torch.empty_strided((2, n, 3, 16), step, device="meta", dtype=torch.float16) for step in (
        (2**31, 48, 16, 1), (2**31 - 16, 48, 16, 1), (48, 2**31, 16, 1), (48, 96, 2**33, 1), (2**31, 2**32, 2**33, 1)
    )]  # fmt: skip
    for x in (shared, shifted, turned, plain[..., ::2].repeat_interleave(2, -1)):
        yield from ([x, plain, plain], [plain, x, plain], [plain, plain, x])
    if DEVICE == "cpu":  # where addresses do not matter
        meta = plain.to("meta")
        for x in far:
            yield from ([x, meta, meta], [meta, x, meta], [meta, meta, x])


@pytest.mark.parametrize("chunk", [1, 32])
def test_tiles_of_strange_inputs(chunk: int, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = module("block_attention")
    monkeypatch.setattr(launches, "_CHUNK", chunk)
    schedule_of = launches.plan_of

    def views(view: Any, size: int) -> Any:
        schedule = schedule_of(view, size)
        return schedule._replace(**{name: moved(getattr(schedule, name)) for name in ("row", "begin", "end")})

    for plan_of, saved, block, n in product((schedule_of, views), (torch.clone, moved), (32, 64), (1, 64, 70)):
        monkeypatch.setattr(launches, "plan_of", plan_of)
        blocks = from_mask(torch.ones(1, n, n, dtype=torch.bool, device=DEVICE), block, block)
        if saved is moved:
            by_target, by_source = (type(view)(view.ptr, *map(moved, view[1:])) for view in blocks[:2])
            blocks = blocks._replace(by_target=by_target, by_source=by_source)
        for x in strange_inputs(n):
            for clamp in (None, 1, 16, 3.0, 2**40):  # Triton compiles for whole numbers, even for which
                both_ways(launches, blocks, x, 1, clamp, True, saved)


def test_lists_of_strange_inputs(recorder: Recorder) -> None:
    launches = module("list_attention")
    for n, block, causal, saved in product((1, 64, 70), (1, 16, 300), (False, True), (torch.clone, moved)):
        for room in {0, 1, n}:
            index = torch.arange(room, device=DEVICE).int().expand(1, -(-n // block), -1).contiguous()
            length = torch.full(index.shape[:2], room // 2, dtype=torch.int32, device=DEVICE)
            for lengths, wide in product((None, length, moved(length)), (torch.int32, torch.int64)):
                listed = moved(index.to(wide)) if saved is moved else index.to(wide)
                lists = SourceLists(listed, lengths, None, n, n, block, "", causal, False, block >= n)
                for x, clamp in zip(strange_inputs(n), (None, 1, 16, 3.0, 2**40) * 20, strict=False):
                    both_ways(launches, lists, x, 1, clamp, True, saved)


def test_rows_far_apart(recorder: Recorder) -> None:
    """Offsets of rows are numbers of 32 bits where these hold them: a block's rows times the stride, or any source."""
    far = torch.empty_strided((2, 70, 3, 16), (48, 2**25, 16, 1), device="meta")
    near = TRITON.dense_rows(far)
    assert near.is_contiguous() and TRITON.dense_rows(near) is near
    wider = torch.empty_strided((2, 70, 3, 16), (48, 2**31, 16, 1), device="meta")
    assert TRITON.dense_rows(wider) is wider  # in 64 bits anyway
    seen: list[torch.dtype] = []
    for step in (2**20, 2**23, 2**31):
        x = torch.empty_strided((1, 400, 1, 16), (0, step, 16, 1), device="meta")
        index = torch.zeros(1, 25, 7, dtype=torch.int32, device="meta")
        lists = SourceLists(index, None, None, 400, 400, 16, "", False, False, False)
        seen.append(module("list_attention")._Call(lists, x, x, x, 0.5, None).lists.index.dtype)
    assert seen == [torch.int32, torch.int64, torch.int64]


def test_plans_are_looked_up(recorder: Recorder) -> None:
    """Equal calls find what shapes decide, in either direction."""
    blocks = from_mask(torch.ones(1, 40, 40, dtype=torch.bool, device=DEVICE), 32, 32)
    index = torch.arange(8, device=DEVICE, dtype=torch.int32).expand(1, 5, 8).contiguous()
    lists = SourceLists(index, None, None, 40, 40, 8, "", False, False, False)
    for name, graph in (("block_attention", blocks), ("list_attention", lists)):
        plans = module(name)._plan_of
        plans.cache_clear()
        for scale in (0.25, 0.5):  # a number is no shape
            both_ways(module(name), graph, inputs(40, 2, (16, 16), torch.float32, "plain"), scale, None, False)
        assert plans.cache_info().misses == 1 and plans.cache_info().hits == 3


def test_a_list_ends_where_its_last_target_does() -> None:
    """Counted on the device as by a search."""
    from graphattn_kernels.list_attention.impl.triton.ends import strip_ends

    random = torch.Generator().manual_seed(0)
    for targets, block, rows, room in ((50, 10, 16, 7), (50, 64, 16, 40), (90, 30, 16, 600)):
        blocks = -(-targets // block)
        index = torch.randint(0, 60, (2, blocks, room), generator=random).sort(-1).values.int()
        length = torch.randint(0, room + 1, (2, blocks), generator=random).int()
        order = torch.cat([torch.randperm(targets, generator=random), torch.full((blocks * block - targets,), -1)])
        for lengths, target in ((None, None), (length, None), (None, order.int().view(1, -1)), (length, None)):
            lists = SourceLists(index, lengths, target, targets, 60, block, "h", True, False, False)
            strips = -(-block // rows)
            place = torch.nn.functional.pad(lists.places(), (0, strips * rows - block), value=-1)
            last = place.view(-1, blocks, strips, rows).amax(-1).expand(2, -1, -1).contiguous()
            used = lists.used()
            entries = index if used is None else index.masked_fill(~used, 1000)
            expected = torch.searchsorted(entries, last.int(), right=True, out_int32=True)
            here: list[Any] = [x.to(DEVICE) if isinstance(x, Tensor) else x for x in lists]
            there = SourceLists(*here)
            assert torch.equal(strip_ends(there, rows, strips).cpu(), expected)


def test_an_eager_call_equals_one_through_the_dispatcher() -> None:
    """An object stands for the arguments of a graph; the dispatcher gets them one by one."""
    from graphattn_kernels.block_attention import ops

    blocks = from_mask(torch.rand(2, 20, 11, generator=torch.Generator().manual_seed(1)) < 0.5, 32, 32, leading="h")
    views = [type(view)(*(x.to(DEVICE) for x in view)) for view in blocks[:2]]
    blocks = blocks._replace(by_target=views[0], by_source=views[1])
    x = [torch.randn(1, n, 2, 16, device=DEVICE, requires_grad=True) for n in (20, 11, 11)]
    found = []
    for out, lse in (
        ops.block_attention(blocks, *x, 0.3, 1.5),
        torch.ops.graphattn.block_attention.default(*flat(blocks), *x, 0.3, 1.5),
    ):
        found.append([out, lse, *torch.autograd.grad(out.square().sum() + lse[lse > -9].sum(), x)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
