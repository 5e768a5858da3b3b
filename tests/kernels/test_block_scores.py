"""The products of keys with the means of blocks of queries: by hand, against the definition, as an operator."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

from graphattn_kernels import block_scores
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRITON = importlib.util.find_spec("triton") is not None and (CUDA or os.environ.get("TRITON_INTERPRET") == "1")
needs_triton = [pytest.mark.triton, pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")]
BACKENDS = [pytest.param("reference"), pytest.param("triton", marks=needs_triton)]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the largest product


def rows(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def by_hand(q: torch.Tensor, k: torch.Tensor, block: int) -> torch.Tensor:
    """In float64, block by block; the means rounded as promised."""
    means = [part.double().mean(1).to(q.dtype).double() for part in q.split(block, 1)]  # [B, H, D]
    return torch.stack([torch.einsum("bhd,bshd->bhs", mean, k.double()) for mean in means], 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("batch", "targets", "sources", "heads", "width", "block"),
    [
        (2, 70, 50, 2, 24, 16),  # nothing fills its tile
        (1, 128, 128, 1, 64, 64),
        (1, 130, 300, 2, 8, 64),  # a last block of 2, three programs of keys
        (1, 5, 3, 1, 1, 1),
        (1, 70, 9, 3, 5, 1),  # more blocks than a program takes
        (1, 300, 7, 1, 40, 1000),
    ],
)
def test_products_of_means(
    batch: int, targets: int, sources: int, heads: int, width: int, block: int, dtype: torch.dtype, backend: str
) -> None:
    q, k = rows((batch, targets, heads, width), dtype), rows((batch, sources, heads, width), dtype, 1)
    found, expected = block_scores(q, k, block, backend=backend), by_hand(q, k, block)
    assert found.dtype == dtype and found.shape == expected.shape
    assert float((found.double() - expected).abs().max()) <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_all_kinds(backend: str) -> None:
    packed = rows((2, 40, 3, 3 * 16), torch.float32)
    q, k, _ = packed.split(16, -1)
    expected = block_scores(q.contiguous(), k.contiguous(), 16, backend=backend)
    assert torch.equal(block_scores(q, k, 16, backend=backend), expected)
    heads_first = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(block_scores(heads_first, k, 16, backend=backend), expected)
    every_other = torch.stack([k, k], -1).flatten(-2)[..., ::2]
    assert torch.equal(block_scores(q, every_other, 16, backend=backend), expected)
    elsewhere = torch.cat([q.new_zeros(1), q.flatten()])[1:].view(q.shape)
    assert torch.equal(block_scores(elsewhere, k, 16, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend: str) -> None:
    for shape in ((0, 4, 6, 2), (2, 0, 6, 2), (2, 4, 0, 2), (2, 4, 6, 0)):
        batch, targets, sources, heads = shape
        q, k = rows((batch, targets, heads, 8), torch.float32), rows((batch, sources, heads, 8), torch.float32)
        assert block_scores(q, k, 3, backend=backend).shape == (batch, heads, -(-targets // 3), sources)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_block_far_larger_than_the_queries(backend: str) -> None:
    q, k = rows((1, 5, 1, 4), torch.float32), rows((1, 3, 1, 4), torch.float32, 1)
    assert torch.equal(block_scores(q, k, 2**40, backend=backend), block_scores(q, k, 5, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient(backend: str) -> None:
    q, k = (rows((1, 8, 1, 4), torch.float32, seed).requires_grad_() for seed in (0, 1))
    scores = block_scores(q, k, 4, backend=backend)
    assert not scores.requires_grad
    compiled = torch.compile(lambda q, k: block_scores(q, k, 4, backend=backend), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k), scores)


@pytest.mark.triton
@pytest.mark.skipif(not TRITON, reason="needs triton, CUDA or TRITON_INTERPRET=1")
def test_an_operator_that_torch_knows() -> None:
    q, k = rows((1, 9, 2, 4), torch.float32), rows((1, 8, 2, 4), torch.float32)
    torch.library.opcheck(
        torch.ops.graphattn.block_scores.default, (q, k, 4), test_utils=("test_schema", "test_faketensor")
    )


def test_bad_input() -> None:
    q, k = rows((1, 8, 2, 4), torch.float32), rows((1, 6, 2, 4), torch.float32)
    wrong: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (ArgumentTypeError, "q must be a floating tensor, got torch.int64", (q.long(), k, 4)),
        (ArgumentTypeError, "k must be a tensor, got list", (q, [k], 4)),
        (ArgumentError, r"k must be \[B, tokens, H, D\], got \[6, 2, 4\]", (q, k[0], 4)),
        (ArgumentError, "q and k must agree in batch, heads and channels", (q, k[..., :3], 4)),
        (ArgumentTypeError, "k must have the dtype and device of q", (q, k.half(), 4)),
        (ArgumentTypeError, "block must be an int, got 4.0", (q, k, 4.0)),
        (ArgumentError, "block must be positive, got 0", (q, k, 0)),
    ]
    for error, text, args in wrong:
        with pytest.raises(error, match=text):
            block_scores(*args)
    with pytest.raises(BackendError, match="no such implementation"):
        block_scores(q, k, 4, backend="gather")
    if TRITON:
        with pytest.raises(BackendError, match="at most 256 channels a head, got 300"):
            block_scores(rows((1, 8, 2, 300), torch.float32), rows((1, 8, 2, 300), torch.float32), 4, backend="triton")
        with pytest.raises(BackendError, match="got torch.float64"):
            block_scores(q.double(), k.double(), 4, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "width"), [(4096, 64), (5000, 128), (1000, 256)])
def test_full_sizes(tokens: int, width: int, dtype: torch.dtype) -> None:
    q, k = rows((2, tokens, 3, width), dtype), rows((2, tokens, 3, width), dtype, 1)
    found, expected = block_scores(q, k, 64, backend="triton"), by_hand(q, k, 64)
    assert float((found.double() - expected).abs().max()) <= TOLERANCE[dtype] * float(expected.abs().max())
