"""A pre_transform over a whole data set is the same as graph by graph."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torch_geometric")

from torch_geometric.transforms import Compose, Constant, RandomJitter, ToUndirected

from graphattn.encoding import AddDegree, AddHopDistance, AddLaplacianPE, AddRandomWalkPE, AddWL, NodeEncoding
from graphattn_datasets import SBMCluster, pre_transform, sbm_cluster_graphs

COUNT = 7


class Counting(NodeEncoding):
    """How often it is asked, and for how many members."""

    attr_name = "one"

    def __init__(self):
        self.members = []

    def encode(self, graph):
        self.members.append(graph.num_members)
        return torch.ones(graph.num_targets, 1)


class OwnForward(AddDegree):
    def forward(self, data):
        data.first = data.edge_index[:, 0]
        return data


class Twice(Compose):
    def forward(self, data):
        return super().forward(super().forward(data))


class AddOne:
    def __call__(self, data):
        data.x = data.x + 1
        return data


def jitter():
    torch.manual_seed(0)
    place = Compose([lambda data: data.update({"pos": torch.zeros(data.num_nodes, 2)}) or data])
    return Compose([place, RandomJitter(1.0), RandomJitter(0.1), AddDegree()])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(pre_transform, "_CHUNK", 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AddLaplacianPE(4),
        lambda: AddLaplacianPE(4, sign="random", seed=3, eigenvalues=True),
        lambda: AddRandomWalkPE(4),
        lambda: AddHopDistance(2),
        lambda: AddOne(),
        lambda: OwnForward(),
        lambda: Compose([]),
        lambda: Compose([ToUndirected(), AddLaplacianPE(4), AddOne(), Compose([AddWL(), AddDegree()]), Constant()]),
        lambda: Compose([AddOne(), Twice([AddOne()]), OwnForward(), AddRandomWalkPE(2)]),
        jitter,
    ],
)
def test_a_data_set_holds_what_the_transform_gives_graph_by_graph(make):
    transform = make()
    expected = [transform(data) for data in sbm_cluster_graphs(COUNT)]
    dataset = SBMCluster(num_graphs=(COUNT, 1, 1), pre_transform=make())
    assert len(dataset) == COUNT
    for data, other in zip(dataset, expected, strict=True):
        assert set(data.keys()) == set(other.keys())
        for key, value in other.to_dict().items():
            assert data[key].dtype == value.dtype and torch.equal(data[key], value), key


def test_encodings_take_many_graphs_together_after_the_filter():
    for transform in (Counting(), Compose([AddOne(), Compose([Counting()])])):
        counting = transform if isinstance(transform, Counting) else transform.transforms[1].transforms[0]
        graphs = sbm_cluster_graphs(COUNT)
        limit = graphs[0].num_nodes
        dataset = SBMCluster(
            num_graphs=(COUNT, 1, 1), pre_transform=transform, pre_filter=lambda data, n=limit: data.num_nodes != n
        )
        assert len(dataset) == COUNT - 1 and counting.members == [3, 3]


def test_short_work_and_work_without_a_terminal_show_no_bar(capsys):
    SBMCluster(num_graphs=(COUNT, 1, 1), pre_transform=AddOne())
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_long_work_on_a_terminal_shows_a_bar(capsys, monkeypatch):
    import sys

    monkeypatch.setattr(pre_transform, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    SBMCluster(num_graphs=(COUNT, 1, 1), pre_transform=AddOne())
    shown = capsys.readouterr().err
    assert "pre_transform of CLUSTER train: 100%" in shown and f"{COUNT}/{COUNT}" in shown
