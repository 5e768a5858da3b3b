from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

from graphattn.encoding import fingerprint
from graphattn.encoding.fingerprints import describe, package_version


class Noise:
    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.inner = [self]  # refers to itself

    def __call__(self, data: object) -> object:
        return data


def add(data: int, by: int = 1) -> int:
    return data + by


def closure(by: int) -> object:
    return lambda data: data + by


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, False),
        (1, 2),
        (1, "1"),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        (torch.zeros(3), torch.zeros(3, 1)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(2), torch.tensor([0.0, 1.0])),
        (Noise(0.1), Noise(0.2)),
        (Noise, Noise(0.1)),
        (add, functools.partial(add, by=2)),
        (closure(1), closure(2)),
        (lambda x: x + 1, lambda x: x + 2),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (np.zeros(2), np.ones(2)),
        (np.array([1, "a"] * 2000, dtype=object), np.array([1, "a"] * 1999 + [1, "b"], dtype=object)),
        (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    ],
)
def test_different_values_differ(one, other):
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"b": [1, (2.5, None)], "a": {3, 1}},
        lambda: torch.arange(4),
        lambda: Noise(0.1),
        lambda: functools.partial(add, by=2),
        lambda: closure(1),
        lambda: np.array([1, object()], dtype=object),
        object,
    ],
)
def test_equal_values_agree(make):
    assert fingerprint(make()) == fingerprint(make())
    assert fingerprint(describe(make())) == fingerprint(make())


def test_a_generator_counts_by_its_seed_and_not_by_what_was_drawn():
    generator = torch.Generator().manual_seed(1)
    before = fingerprint(generator)
    torch.rand(3, generator=generator)
    assert fingerprint(generator) == before


def subclass(body: str, base: type = object) -> type:
    """A class ``Step`` as if its source had been edited."""
    names: dict[str, type] = {"Base": base}
    exec(f"class Step(Base):\n    {body}", names)
    return names["Step"]


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        ("def go(self, x): return x + 1", "def go(self, x): return x + 2"),
        ("def go(self, x, by=1): return x + by", "def go(self, x, by=2): return x + by"),
        ("def go(self, x, *, by=1): return x + by", "def go(self, x, *, by=2): return x + by"),
        ("go = staticmethod(lambda x: x + 1)", "go = staticmethod(lambda x: x + 2)"),
        ("go = classmethod(lambda cls: 1)", "go = classmethod(lambda cls: 2)"),
    ],
)
def test_the_code_of_methods_counts_and_that_of_inherited_ones(body, edited):
    assert fingerprint(subclass(body)()) == fingerprint(subclass(body)())
    assert fingerprint(subclass(body)()) != fingerprint(subclass(edited)())
    assert fingerprint(subclass("pass", subclass(body))) != fingerprint(subclass("pass", subclass(edited)))


def test_the_version_of_the_package_counts(monkeypatch):
    before = fingerprint([Noise(0.1), np.float64])
    monkeypatch.setattr(np, "__version__", "0.0.0")
    after = fingerprint([Noise(0.1), np.float64])
    assert after != before
    monkeypatch.setattr("graphattn.encoding.fingerprints.package_version", lambda module: "9.9")
    assert fingerprint([Noise(0.1), np.float64]) not in (before, after)


def test_package_version_is_that_of_the_code_that_runs():
    assert package_version("numpy.linalg") == np.__version__
    assert package_version("pytest") == pytest.__version__
    assert package_version("no_such_package.module") == ""


@pytest.mark.requires("pyg")
def test_transforms_by_their_arguments():
    from torch_geometric import transforms as pyg

    from graphattn.encoding import AddLaplacianPE, AddWL

    def values() -> list[object]:
        return [
            None,
            AddLaplacianPE(3),
            AddLaplacianPE(4),
            AddLaplacianPE(3, sign="abs"),
            AddLaplacianPE(3, "lap"),
            AddWL(),
            pyg.Compose([AddWL()]),
            pyg.Compose([pyg.ToUndirected(), AddWL()]),
            pyg.Constant(1.0),
            pyg.Constant(2.0),
            pyg.AddRandomWalkPE(4),
            pyg.AddRandomWalkPE(5),
            pyg.AddLaplacianEigenvectorPE(4),
        ]

    prints = [fingerprint(value) for value in values()]
    assert len(set(prints)) == len(prints)
    assert prints == [fingerprint(value) for value in values()]


def test_same_in_every_process():
    program = (
        "import functools; from graphattn.encoding import fingerprint, laplacian_pe;"
        "f = lambda x: x in {'a', 'b', 'c', 'd'};"
        "print(fingerprint([functools.partial(laplacian_pe, k=3), f.__code__.co_consts, f, {'u', 'v', 'w'}]))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(printed[0].strip()) == 12 and printed[0] == printed[1]
