from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from graphattn.errors import ConfigError
from graphattn.training.inputs import call_model


def graph(nodes: int = 3, **fields: Tensor) -> Data:
    return Data(
        x=torch.arange(float(nodes)).unsqueeze(1),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        y=torch.ones(nodes),
        **fields,
    )


class Recorder(nn.Module):
    """Returns the arguments it was called with."""

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None, y: str = "unseen", scale: float = 2.0
    ):
        return x, edge_index, edge_attr, y, scale


def test_fields_reach_parameters_by_name_and_defaults_stay():
    data = graph()
    x, edge_index, edge_attr, y, scale = call_model(Recorder(), data)
    assert x is data.x and edge_index is data.edge_index
    assert edge_attr is None and scale == 2.0
    assert y == "unseen"  # a model never sees the labels


def test_optional_field_is_passed_where_the_data_have_it():
    data = graph(edge_attr=torch.tensor([1, 2]))
    assert call_model(Recorder(), data)[2] is data.edge_attr


@pytest.mark.parametrize("name", ["data", "batch_data"])
def test_single_parameter_for_the_whole_batch(name: str):
    scope: dict = {}
    exec(f"def forward(self, {name}):\n    return {name}", scope)
    model = type("Whole", (nn.Module,), {"forward": scope["forward"]})()
    data = graph()
    assert call_model(model, data) is data


class Pooled(nn.Module):
    def forward(self, x: Tensor, batch: Tensor, num_graphs: int = 7) -> tuple[Tensor, int]:
        return batch, num_graphs


def test_batch_vector_and_number_of_graphs():
    vector, count = call_model(Pooled(), Batch.from_data_list([graph(3), graph(2)]))
    assert vector.tolist() == [0, 0, 0, 1, 1] and count == 2


def test_a_single_graph_is_a_batch_of_one():
    vector, count = call_model(Pooled(), graph(3))
    assert vector.tolist() == [0, 0, 0] and count == 1


def test_missing_field_names_model_parameter_and_what_there_is():
    class NeedsPe(nn.Module):
        def forward(self, x: Tensor, pe: Tensor) -> Tensor:
            return x

    with pytest.raises(ConfigError, match=r"NeedsPe\.forward needs the argument 'pe'.*edge_index.*x"):
        call_model(NeedsPe(), graph())


def test_the_host_knows_how_many_pairs_a_batch_has():
    class Pairs(nn.Module):
        def forward(self, x: Tensor, num_pairs: int | None = None) -> int | None:
            return num_pairs

    batch = Batch.from_data_list([graph(3), graph(2), graph(4)])
    assert call_model(Pairs(), batch) == 9 + 4 + 16
    assert call_model(Pairs(), batch.to("meta")) == 29
    assert call_model(Pairs(), graph(3)) is None
