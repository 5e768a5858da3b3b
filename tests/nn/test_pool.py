"""Pooling against PyG's, on batches with empty graphs, and its gradients."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.nn import POOLS, pool, unpool
from graphattn.testing import require_or_skip

BATCHES = {
    "one-graph": [0, 0, 0],
    "three": [0, 0, 1, 1, 1, 2],
    "empty-first-middle-last": [1, 1, 3],
    "no-rows": [],
}
EVERY = pytest.mark.parametrize("how", POOLS)


def by_hand(x: torch.Tensor, batch: torch.Tensor, graphs: int, how: str) -> torch.Tensor:
    rows = []
    for g in range(graphs):
        mine = x[batch == g]
        if len(mine) == 0:
            rows.append(torch.zeros(x.shape[1], dtype=x.dtype))
        else:
            rows.append({"mean": mine.mean(0), "sum": mine.sum(0), "max": mine.amax(0)}[how])
    return torch.stack(rows)


@EVERY
@pytest.mark.parametrize("name", BATCHES)
def test_value_and_gradient(how: str, name: str) -> None:
    batch = torch.tensor(BATCHES[name], dtype=torch.int64)
    x = torch.randn(len(batch), 4, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(5, 4, dtype=torch.float64)
    results = [pool(x, batch, 5, how), by_hand(x, batch, 5, how)]
    torch.testing.assert_close(*results)
    if len(batch):
        torch.testing.assert_close(*(torch.autograd.grad(out, x, slope)[0] for out in results))


@EVERY
def test_equals_pyg(how: str) -> None:
    require_or_skip("pyg")
    from torch_geometric.nn import pool as pyg

    reference = {"mean": pyg.global_mean_pool, "sum": pyg.global_add_pool, "max": pyg.global_max_pool}[how]
    batch = torch.tensor(BATCHES["three"])
    x = torch.randn(6, 4)
    torch.testing.assert_close(pool(x, batch, how=how), reference(x, batch))
    torch.testing.assert_close(pool(x, None, how=how), reference(x, None))
    torch.testing.assert_close(pool(x, batch, 4, how), reference(x, batch, 4))


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(how: str, dtype: torch.dtype) -> None:
    x = torch.ones(4096, 2, dtype=dtype)
    out = pool(x, torch.zeros(4096, dtype=torch.int64), 1, how)
    assert out.dtype == dtype
    assert (out == (4096 if how == "sum" else 1)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_means_whose_sum_or_count_no_half_type_holds(dtype: torch.dtype) -> None:
    for count, value in ((70_000, 2.0), (1000, 100.0)):
        assert pool(torch.full((count, 1), value, dtype=dtype), None).item() == value


def test_no_rows_and_no_graphs() -> None:
    assert pool(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


def test_errors() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ArgumentError, match="how must be one of .*got 'median'"):
        pool(x, None, how="median")
    with pytest.raises(ArgumentError, match="batch must be \\[N\\], the graph of each of 3 rows, got \\[2\\]"):
        pool(x, torch.tensor([0, 0]))
    with pytest.raises(ArgumentError, match="batch must ascend"):
        pool(x, torch.tensor([0, 1, 0]))
    with pytest.raises(ArgumentError, match=r"batch must lie in 0..num_graphs - 1, got 0..2 with num_graphs=2"):
        pool(x, torch.tensor([0, 1, 2]), 2)
    with pytest.raises(ArgumentError, match=r"batch must lie in 0..num_graphs - 1, got -1..1"):
        pool(x, torch.tensor([-1, 0, 1]))


def test_unpool_reads_no_row_that_is_not_there() -> None:
    for batch, tokens, text in (
        ([0, 1, 2], 3, "batch must lie in 0..num_graphs - 1, got 0..2 with num_graphs=2"),
        ([0, 1, 1], 2, r"batch must be \[N\], the graph of each of 2 rows, got \[3\]"),
        ([1, 0, 0], 3, "batch must ascend"),
    ):
        with pytest.raises(ArgumentError, match=text):
            unpool(torch.zeros(2, 4), torch.tensor(batch), tokens)
