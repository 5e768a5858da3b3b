"""Kernels that are put in place while the one before them still ends: they wait for what it writes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import graphattn_kernels
from graphattn.testing import require_or_skip
from graphattn_kernels import block_scores, list_attention, select_bits, select_lists
from graphattn_kernels.lists import SourceLists

require_or_skip("triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from graphattn_kernels import _triton  # noqa: E402

try:
    from triton.language.extra.cuda import gdc_launch_dependents
except ImportError:  # then nothing is chained
    gdc_launch_dependents = None

TOKENS, BLOCK, HEADS, WIDTH = 512, 64, 2, 64


def test_kernels_that_are_chained_wait_before_all_else() -> None:
    found = 0
    for path in Path(graphattn_kernels.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or not node.name.endswith("_kernel"):
                continue
            statements = [ast.unparse(x) for x in node.body[1:]]  # after the docstring
            waits = "CHAINED" in [x.arg for x in node.args.args]
            assert waits == (statements[0] == "wait_for_previous(CHAINED)"), f"{path}: {node.name}"
            found += waits
    assert found > 5


@pytest.mark.triton
def test_on_a_cpu_nothing_is_chained() -> None:
    assert not _triton.chained(-1)


@triton.jit
def late_kernel(OUT, SOURCE, numbers, turns, N: tl.constexpr):
    """OUT = SOURCE, long after the next kernel may begin."""
    gdc_launch_dependents()
    at = tl.program_id(0) * N + tl.arange(0, N)
    value = tl.load(SOURCE + at, mask=at < numbers)
    for _ in range(turns):
        tl.debug_barrier()
    tl.store(OUT + at, value, mask=at < numbers)


def late(x: Tensor) -> Tensor:
    """A copy of x that holds other numbers until a kernel that lets the next one begin at once has ended."""
    out = x.flip(0).contiguous() if x.dtype == torch.int32 else torch.zeros_like(x)
    late_kernel[(-(-x.numel() // 1024),)](out, x, x.numel(), 20_000, N=1024)
    return out


def attention(lists: SourceLists) -> Callable[..., list[Tensor]]:
    def run(index: Tensor, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out, _ = list_attention(lists._replace(index=index), *leaves, backend="triton")
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return run


def case(name: str) -> tuple[Callable[..., Any], list[Tensor]]:
    random = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, TOKENS, HEADS, WIDTH, generator=random).to("cuda", torch.bfloat16) for _ in range(4)]
    scores = torch.randn(HEADS, TOKENS // BLOCK, TOKENS, generator=random).cuda()
    if name == "block_scores":
        return lambda q, k: [block_scores(q, k, BLOCK, backend="triton")], rows[:2]
    if name == "select_lists":
        return lambda x: list(select_lists(x, 50, backend="triton")), [scores]
    if name == "select_bits":
        return lambda x: [select_bits(x, 50, backend="triton")], [scores]
    block = BLOCK if name == "list_attention" else 4 * BLOCK  # the second has a pass over entries
    index = scores[:, : TOKENS // block].argsort(-1)[..., :50].sort(-1).values.int()
    causal = name == "list_attention, causal"
    lists = SourceLists(index, None, None, TOKENS, TOKENS, block, "h", causal, False, False)
    return attention(lists), [index, *rows]


CASES = ["block_scores", "select_lists", "select_bits", "list_attention", "list_attention, causal"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("captured", [False, True])
def test_what_is_written_late_is_waited_for(name: str, captured: bool) -> None:
    if not _triton.chained(torch.cuda.current_device()):
        pytest.skip("needs compute capability 9.0 and Triton's gdc_wait")
    run, inputs = case(name)
    expected = run(*inputs)
    run(*[late(x) for x in inputs])  # compiles
    torch.cuda.synchronize()
    if captured:
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph):
            got = run(*[late(x) for x in inputs])
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                copies = [late(x) for x in inputs]
            torch.cuda.current_stream().wait_stream(side)  # then no kernel alone is the one before
            again = run(*copies)
        for _ in range(3):
            for x in (*got, *again):
                x.zero_()
            graph.replay()
    else:
        got = again = run(*[late(x) for x in inputs])
    for x, y, z in zip(got, again, expected, strict=True):
        assert torch.equal(x, z) and torch.equal(y, z)


@pytest.mark.gpu
def test_compiled_kernels_wait_before_they_read() -> None:
    if not _triton.chained(torch.cuda.current_device()):
        pytest.skip("needs compute capability 9.0 and Triton's gdc_wait")
    for name in CASES:
        run, inputs = case(name)
        run(*inputs)
    waiting = 0
    for compiled in _triton._compiled.values():
        code = compiled.kernel.asm["ptx"]
        if "griddepcontrol.wait" not in code:
            continue
        before = code[: code.index("griddepcontrol.wait")]
        assert not any(word in before for word in ("ld.global", "st.global", "cp.async"))
        waiting += 1
    assert waiting >= 8
