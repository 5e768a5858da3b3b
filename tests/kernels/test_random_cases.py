"""``csr_attention`` on random cases, value and gradients, in memory that starts as NaN.

Always: tiny cases that hold every pair of values of two options, on every backend (Triton in its interpreter where
there is no GPU). On request 10,000 larger ones, a test for each 50::

    pytest -n 2 -m slow tests/kernels/test_random_cases.py    # gather and Numba, on the CPU
    pytest -n 12 -m gpu tests/kernels/test_random_cases.py    # Triton, on a GPU

With ``--junitxml=FILE -o junit_family=xunit1`` the file has the largest share of the allowed error of each of these
tests. The first word of a failure is the number of the case: ``check(random_case(1234), "gather")`` runs it alone
(``cases.py`` and ``judge.py`` beside this file).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import pytest
import torch

from tests.kernels.cases import OPTIONS, PER_VARIANT, VARIANTS, Case, covering_cases, make, random_case
from tests.kernels.judge import attend, available_device, check, eager, results

Record = Callable[[str, object], None]


def test_every_pair_of_values_of_two_options_stands_in_a_case() -> None:
    cases = covering_cases()
    assert len(cases) < 160
    for a, b in itertools.combinations(OPTIONS, 2):
        held = {(getattr(case, a), getattr(case, b)) for case in cases}
        assert held == set(itertools.product(OPTIONS[a], OPTIONS[b])), (a, b)


def test_a_case_is_its_number() -> None:
    for number in (0, 77, VARIANTS * PER_VARIANT - 1):
        case = random_case(number)
        assert case == random_case(number) and str(case).startswith(f"{number}-")
        first, second = make(case), make(case)
        assert first.options.keys() == second.options.keys()
        assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_the_random_cases_are_many_kinds() -> None:
    cases = [random_case(number) for number in range(0, VARIANTS * PER_VARIANT, 7)]
    for name in ("graph", "heads", "dtype", "score", "bias", "layout", "needs", "slopes", "sides", "split", "index"):
        assert {getattr(case, name) for case in cases} == set(OPTIONS[name])
    widths = {width for case in cases for width in case.widths}
    assert min(widths) == 1 and max(widths) > 200 and any(width % 2 and width > 64 for width in widths)
    assert max(case.size for case in cases) > 256  # so that hubs are cut at the length that users meet


@pytest.mark.parametrize("case", covering_cases()[::4], ids=str)
def test_the_plain_code_is_the_reference(case: Case) -> None:
    """What everything is compared with, against the other independent implementation."""
    problem = make(case)
    ours = results(problem, eager, torch.float64)
    theirs = results(problem, functools.partial(attend, backend="reference"), torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", covering_cases(), ids=str)
@pytest.mark.parametrize("backend", ["gather", "numba", pytest.param("triton", marks=pytest.mark.triton)])
def test_every_pair_of_options(backend: str, case: Case) -> None:
    if backend == "numba":  # its code is compiled for each number of channels and type of index, in ten seconds
        few = ((5, 9), (8, 16), (33, 20))
        case = dataclasses.replace(case, widths=few[case.number % len(few)], index=torch.int32)
    check(case, backend, device=available_device(backend))


def check_variant(variant: int, backends: tuple[str, ...], device: str, record: Record) -> None:
    failures, worst = [], dict.fromkeys(backends, 0.0)
    for number in range(variant * PER_VARIANT, (variant + 1) * PER_VARIANT):
        case = random_case(number)
        try:
            shares = check(case, *backends, device=device)
        except AssertionError as error:
            failures.append(str(error))
        else:
            worst = {backend: max(worst[backend], shares[backend]) for backend in backends}
    record("dtype", str(random_case(variant * PER_VARIANT).dtype))
    for backend in backends:
        record(f"worst share, {backend}", worst[backend])
    assert not failures, f"{len(failures)} of {PER_VARIANT} cases:\n" + "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize("variant", range(VARIANTS))
def test_ten_thousand_on_the_cpu(variant: int, record_property: Record) -> None:
    available_device("numba")
    check_variant(variant, ("gather", "numba"), "cpu", record_property)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", range(VARIANTS))
def test_ten_thousand_on_the_gpu(variant: int, record_property: Record) -> None:
    check_variant(variant, ("triton",), "cuda", record_property)
