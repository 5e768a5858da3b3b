"""What validation does where the host must not wait for the device."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.graph import check


def test_a_cuda_graph_under_capture_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert check.waits_for_nothing(torch.device("cuda"))
    assert not check.waits_for_nothing(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert not check.waits_for_nothing(torch.device("cuda"))
    assert check.waits_for_nothing(torch.device("meta"))  # there are no values


def test_values_are_then_not_looked_at_but_the_form_is(monkeypatch: pytest.MonkeyPatch):
    outside, ptr = torch.tensor([[0, 9], [1, 0]]), torch.tensor([0, 1, 2])
    wrong = [
        lambda: check.check_edge_index(outside, 2, 2),
        lambda: check.check_csr(torch.tensor([0, 3, 2]), torch.tensor([0, 1]), 2),
        lambda: check.check_ptr("ptr", torch.tensor([0, 5]), 2, ptr.device),
        lambda: check.check_members(torch.tensor([[0], [1]]), ptr, ptr),
    ]
    for call in wrong:
        with pytest.raises(ArgumentError):
            call()
    monkeypatch.setattr(check, "waits_for_nothing", lambda device: True)
    for call in wrong:
        call()
    with pytest.raises(ArgumentError):
        check.check_edge_index(outside.t()[:1], 2, 2)
