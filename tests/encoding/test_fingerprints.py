from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch

from graphattn.encoding import fingerprint
from graphattn.encoding.fingerprints import describe


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
        object,
    ],
)
def test_equal_values_agree(make):
    assert fingerprint(make()) == fingerprint(make())
    assert fingerprint(describe(make())) == fingerprint(make())


def test_versions_count(monkeypatch):
    before = fingerprint(Noise(0.1))
    monkeypatch.setattr("graphattn.encoding.fingerprints.package_version", lambda module: "9.9")
    assert fingerprint(Noise(0.1)) != before


@pytest.mark.requires("pyg")
def test_transforms_by_their_arguments_in_every_process():
    from torch_geometric.transforms import Compose, ToUndirected

    from graphattn.encoding import AddLaplacianPE, AddWL

    values = [
        AddLaplacianPE(3),
        AddLaplacianPE(4),
        AddLaplacianPE(3, sign="abs"),
        AddLaplacianPE(3, "lap"),
        AddWL(),
        Compose([AddWL()]),
        Compose([ToUndirected(), AddWL()]),
    ]
    assert len({fingerprint(value) for value in values}) == len(values)
    program = "from graphattn.encoding import *; print(fingerprint(AddLaplacianPE(3)))"
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == fingerprint(AddLaplacianPE(3))
