"""The vectors of eight that the Numba kernels are made of, and the cache that notices changes to what is inlined."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

from numba import njit

from graphattn_kernels import _numba
from graphattn_kernels._lanes import LANES, load, spread, store, total, totals
from graphattn_kernels._lanes_functions import exp, log

HALF = {torch.bfloat16: np.int16, torch.float16: np.uint16}


def apply(function: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    """A function of eight numbers on each eight of a tensor, the last of them perhaps not full."""

    @njit
    def loop(x: Any, y: Any) -> None:
        for i in range(0, x.size, LANES):
            store(y, i, function(load(x, i, x.size - i)), x.size - i)

    def run(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        loop(x.numpy(), y.numpy())
        return y

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_exponential(dtype: torch.dtype) -> None:
    """Two units in the last place over the range of weights; exact at 0, -inf and NaN."""
    lowest = -86.9 if dtype == torch.float32 else -700.0
    special = torch.tensor([0.0, -0.0, float("-inf"), float("nan"), -1e30])
    x = torch.cat([special, torch.linspace(lowest, 2.0, 100_001)]).to(dtype)
    expected = torch.tensor([1.0, 1.0, 0.0, float("nan"), 0.0], dtype=dtype)

    @njit
    def each(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = _numba.exp(x[i])

    one_by_one = torch.empty_like(x)
    each(x.numpy(), one_by_one.numpy())
    for y in (apply(njit(lambda x: exp(x)))(x), one_by_one):
        torch.testing.assert_close(y[:5], expected, rtol=0, atol=0, equal_nan=True)
        assert ((y[5:].double() / x[5:].double().exp() - 1).abs() < 2 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_logarithm(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(1.0, 3.0, 50_001), torch.logspace(-30, 30, 50_001), torch.tensor([float("nan")])])
    x = x.to(dtype)
    y, exact = apply(njit(lambda x: log(x)))(x), x.double().log()
    assert y[0] == 0 and y[-1].isnan()
    error = (y[:-1].double() - exact[:-1]).abs()
    assert (error <= 2 * torch.finfo(dtype).eps * exact[:-1].abs()).all()


@pytest.mark.parametrize("count", range(1, 18))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parts_of_a_vector(count: int, dtype: torch.dtype) -> None:
    """What lies behind is neither read into the result nor written."""
    x = torch.full((24,), float("nan"), dtype=dtype)
    y = x.clone()
    x[:count] = torch.arange(count)

    @njit
    def double(x: Any, y: Any, count: int) -> float:
        found = 0.0
        for i in range(0, count, LANES):
            eight = load(x, i, count - i)
            store(y, i, eight + eight * x.dtype.type(1), count - i)
            found += total(eight)
        return found

    assert double(x.numpy(), y.numpy(), count) == count * (count - 1) / 2
    torch.testing.assert_close(y[:count], 2 * x[:count], rtol=0, atol=0)
    assert y[count:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_as_torch_does(dtype: torch.dtype) -> None:
    """All 2^16 values come through; numbers between two of them, infinities and NaN are rounded the same way."""

    @njit
    def copy(x: Any, y: Any) -> None:
        for i in range(0, x.size, LANES):
            store(y, i, load(x, i, LANES), LANES)

    def as_integers(x: Tensor) -> np.ndarray[Any, Any]:
        return x.view(torch.int16).numpy().view(HALF[dtype])

    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    wide, back = torch.empty(2**16), torch.empty_like(every)
    copy(as_integers(every), wide.numpy())
    torch.testing.assert_close(wide, every.float(), rtol=0, atol=0, equal_nan=True)
    between = torch.cat([wide * (1 + 2.0**-9), wide * (1 + 2.0**-12), wide * (1 + 2.0**-8)])
    for x in (wide, *between.split(2**16)):
        copy(x.numpy(), as_integers(back))
        torch.testing.assert_close(back, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_totals() -> None:
    x = torch.arange(64, dtype=torch.float64).square()

    @njit
    def run(x: Any, y: Any) -> None:
        store(y, 0, totals(x, 0) * spread(1.0), LANES)

    y = torch.empty(8, dtype=torch.float64)
    run(x.numpy(), y.numpy())
    assert torch.equal(y, x.view(8, 8).sum(1))


# --- the cache ------------------------------------------------------------------------------------------------

INNER = """
from graphattn_kernels._numba import inlined

@inlined
def inner(x):
    return x + {number}
"""
OUTER = """
from graphattn_kernels._numba import compiled
from {package}.inner import inner

@compiled()
def outer(x):
    return inner(x)
"""


def test_a_change_to_what_is_inlined_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba itself looks only at the file of the function that it keeps."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "kernels_of_a_test"
    folder.mkdir()
    (folder / "outer.py").write_text(OUTER.format(package=folder.name))

    def outer(number: int) -> Any:
        """The function as a new process would import it."""
        (folder / "inner.py").write_text(INNER.format(number=number))
        os.utime(folder / "inner.py", (number, number))
        for name in ("inner", "outer"):
            spec = importlib.util.spec_from_file_location(f"{folder.name}.{name}", folder / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
        return module.outer

    for number, compiled in ((1, 1), (1, 0), (20, 1), (20, 0)):
        function = outer(number)
        assert function(1) == 1 + number
        assert sum(function.stats.cache_misses.values()) == compiled
