"""What attention over edges says of its launches: one kind stands for one compiled kernel."""

from __future__ import annotations

import importlib
from itertools import product

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn_kernels.structure import Structure, View
from tests.kernels.launches import DEVICE, Recorder, moved, needs_device

pytestmark = needs_device
INTEGERS = [(torch.int32, torch.int32), (torch.int64, torch.int64), (torch.int32, torch.int64), (torch.int32, None)]


def with_integers(structure: Structure, ends: torch.dtype, edges: torch.dtype | None) -> Structure:
    """The same graph in other dtypes, with numbers of edges or without."""

    def cast(view: View) -> View:
        assert view.edge_id is not None
        edge_id = None if edges is None else view.edge_id.to(edges)
        return View(*(x.to(ends) for x in view[:3]), edge_id)

    return Structure(*map(cast, structure))


def tensor(layout: str, *shape: int) -> Tensor:
    """Dense, as a slice of wider rows, or from an address on that is no multiple of 16."""
    if layout == "packed":
        return torch.zeros(shape[0], 2, *shape[1:], device=DEVICE)[:, 1]
    start = 1 if layout == "odd" else 0
    return torch.zeros(torch.Size(shape).numel() + start, device=DEVICE)[start:].view(shape)


@pytest.mark.parametrize("edges", [900, 60], ids=["hubs", "short"])
def test_kinds(edges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module("graphattn_kernels.csr_attention.impl.triton.launch")
    inputs_of = importlib.import_module("graphattn_kernels.csr_attention.inputs").Inputs
    recorder = Recorder()
    monkeypatch.setattr(kernels, "launch", recorder)
    random = torch.Generator().manual_seed(0)
    listed = torch.stack([torch.randint(0, n, (edges,), generator=random) for n in (20, 7)]).to(DEVICE)
    made = TokenGraph.from_edge_index(listed, num_targets=7, num_sources=20).structure
    for structure in [with_integers(made, *integers) for integers in INTEGERS]:
        for width, layout, bias, (gate, rows), seed, clamp, with_lse in product(
            *((1, 16), ("plain", "packed", "odd"), (None, 1, 3), ((0, 0), (1, 0), (0, 1)), (False, True)),
            *((None, 1.0), (False, True)),
        ):
            edge = tensor(layout, edges, 3, width)
            inputs = inputs_of(
                *(tensor(layout, n, 3, width) for n in (7, 20, 20)),
                None if bias is None else tensor(layout, edges, bias).expand(-1, 3),
                *(edge if gate else None, edge if rows else None, None),
                torch.zeros(3, dtype=torch.int64, device=DEVICE)[1:] if seed else None,
                *(0.5, clamp, None, 0.5 if seed else 0.0, False),
            )
            out, lse, _ = kernels.forward(structure, inputs)
            saved = moved(out) if layout == "odd" else out
            kernels.backward(structure, inputs, saved, lse, out, lse if with_lse else None, None)
    assert len(recorder.seen) < recorder.launches  # some are of one kind
