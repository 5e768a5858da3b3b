"""The encodings as PyG transforms."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch

from graphattn.encoding import (
    WLVocabulary,
    degree_encoding,
    flip_signs,
    hop_pairs,
    laplacian_pe,
    random_walk_pe,
    wl_ids,
)
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.testing import require_or_skip

require_or_skip("pyg")

from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset  # noqa: E402
from torch_geometric.loader import DataLoader  # noqa: E402
from torch_geometric.transforms import Compose, ToUndirected  # noqa: E402
from torch_geometric.utils import erdos_renyi_graph  # noqa: E402

from graphattn.encoding import (  # noqa: E402
    AddDegree,
    AddHopDistance,
    AddLaplacianPE,
    AddRandomWalkPE,
    AddWL,
    NodeEncoding,
    SignFlip,
    precompute,
)

SIZES = [5, 9, 1, 12, 7]


def graphs() -> list[Data]:
    torch.manual_seed(0)
    return [
        Data(x=torch.rand(size, 2), edge_index=erdos_renyi_graph(size, 0.4), y=torch.tensor([size])) for size in SIZES
    ]


def token_graph(data: Data) -> TokenGraph:
    return TokenGraph.from_edge_index(data.edge_index, data.num_nodes)


def adders() -> list[tuple[NodeEncoding, torch.Tensor]]:
    """Every transform with what it should add to the second graph."""
    graph = token_graph(graphs()[1])
    vocabulary = WLVocabulary.fit([token_graph(data) for data in graphs()])
    return [
        (AddLaplacianPE(3), laplacian_pe(graph, 3)),
        (
            AddLaplacianPE(3, normalization="rw", sign="abs", per_component=False, solver="dense"),
            laplacian_pe(graph, 3, normalization="rw", sign="abs", per_component=False),
        ),
        (AddRandomWalkPE(4), random_walk_pe(graph, 4)),
        (AddDegree(), degree_encoding(graph)),
        (AddDegree("pe", direction="both", max_degree=2), degree_encoding(graph, direction="both", max_degree=2)),
        (AddWL(), wl_ids(graph)),
        (AddWL("wl", mode="published"), wl_ids(graph, mode="published")),
        (AddWL(rounds=1, num_ids=5), wl_ids(graph, 1, num_ids=5)),
        (AddWL(vocabulary=vocabulary), vocabulary(wl_ids(graph))),
    ]


ADDERS = pytest.mark.parametrize("index", range(9))


@ADDERS
def test_adds_what_the_function_returns(index):
    transform, expected = adders()[index]
    before = graphs()[1]
    after = transform(before)
    assert torch.equal(after[transform.attr_name], expected)
    assert transform.attr_name not in before
    assert torch.equal(after.x, before.x)


@ADDERS
def test_batch_equals_members_and_so_does_precompute(index):
    transform = adders()[index][0]
    alone = [transform(data)[transform.attr_name] for data in graphs()]
    batch = transform(Batch.from_data_list(graphs()))
    assert torch.equal(batch[transform.attr_name], torch.cat(alone))
    for chunk in (2, 256):
        for before, after, value in zip(graphs(), precompute(graphs(), transform, chunk=chunk), alone, strict=True):
            assert torch.equal(after[transform.attr_name], value)
            assert set(after.keys()) == {*before.keys(), transform.attr_name}
            assert after[transform.attr_name].untyped_storage().nbytes() == value.untyped_storage().nbytes()
    collated = Batch.from_data_list(precompute(graphs(), transform))
    assert torch.equal(collated[transform.attr_name], torch.cat(alone))


@ADDERS
def test_repr_shows_every_argument_and_pickles(index):
    transform = adders()[index][0]
    again = pickle.loads(pickle.dumps(transform))
    assert repr(again) == repr(transform)
    if not isinstance(transform, AddWL):  # whose vocabulary has no literal form
        assert repr(eval(repr(transform))) == repr(transform)


def test_repr_in_full():
    assert repr(AddLaplacianPE(8)) == (
        "AddLaplacianPE(k=8, attr_name='pe', normalization='sym', sign='fixed', per_component=True, "
        "directed='symmetrize', solver='auto', eigenvalues=False, seed=None)"
    )
    assert repr(AddHopDistance(3)) == "AddHopDistance(max_distance=3, attr_name='hop', reachable_only=False)"
    assert repr(SignFlip(per="batch")) == "SignFlip(attr_name='pe', per='batch', seed=None)"


def test_no_name_appends_to_x():
    data = graphs()[1]
    after = AddRandomWalkPE(3, attr_name=None)(data)
    assert torch.equal(after.x, torch.cat([data.x, random_walk_pe(token_graph(data), 3)], 1))
    assert data.x.shape == (9, 2)
    bare = Data(edge_index=data.edge_index, num_nodes=9)
    assert torch.equal(AddRandomWalkPE(3, None)(bare).x, random_walk_pe(token_graph(data), 3))
    ids = Data(x=torch.zeros(9, dtype=torch.long), edge_index=data.edge_index)
    assert torch.equal(AddDegree(None)(ids).x[:, 1], degree_encoding(token_graph(data)))
    with pytest.raises(ArgumentError, match="x holds ids"):
        AddRandomWalkPE(3, attr_name=None)(ids)


@pytest.mark.parametrize(
    ("dtype", "tokens", "transform"),
    [
        (torch.bool, 4, AddDegree(None)),
        (torch.uint8, 301, AddDegree(None)),
        (torch.float16, 2050, AddDegree(None)),
        (torch.float32, 4, AddWL(None)),
    ],
    ids=str,
)
def test_ids_that_x_cannot_hold_are_refused(dtype, tokens, transform):
    star = torch.stack([torch.arange(1, tokens), torch.zeros(tokens - 1, dtype=torch.long)])
    data = Data(x=torch.zeros(tokens, 1, dtype=dtype), edge_index=star)
    with pytest.raises(ArgumentError, match=rf"x \({dtype}\) cannot hold its ids exactly"):
        transform(data)
    with pytest.raises(ArgumentError, match="cannot hold its ids exactly"):
        precompute([data], transform)
    few = Data(x=torch.zeros(2, 1, dtype=dtype), edge_index=star[:, :1])
    assert AddDegree(None)(few).x[:, 1].tolist() == [1, 0]


def test_eigenvalues_and_groups():
    data = graphs()[3]
    found = laplacian_pe(token_graph(data), 4, return_eigenvalues=True)
    for after in (AddLaplacianPE(4, eigenvalues=True)(data), *precompute([data], AddLaplacianPE(4, eigenvalues=True))):
        assert torch.equal(after.pe, found.pe)
        assert torch.equal(after.pe_eigenvalues, found.eigenvalues)
        assert torch.equal(after.pe_group, found.group)


def test_random_signs_follow_the_seed_alone():
    def encode(seed: int, chunk: int) -> torch.Tensor:
        made = precompute(graphs() * 4, AddLaplacianPE(4, sign="random", seed=seed), chunk=chunk)
        return torch.cat([data.pe for data in made])

    first = encode(1, 256)
    torch.manual_seed(99)
    assert torch.equal(first, encode(1, 256))
    assert torch.equal(first, encode(1, 3))
    assert not torch.equal(first, encode(2, 256))
    for arguments in ({"sign": "random"}, {"seed": 1}):
        with pytest.raises(ArgumentError, match="seed goes with"):
            AddLaplacianPE(4, **arguments)


def test_signs_of_a_batch_in_precompute_are_those_of_graph_by_graph():
    def transform() -> AddLaplacianPE:
        return AddLaplacianPE(3, sign="random_batch", seed=1)

    one = transform()
    alone = [one(data).pe for data in graphs() * 4]
    for chunk in (2, 256):
        bulk = transform()
        made = precompute(graphs() * 4, bulk, chunk=chunk)
        assert all(torch.equal(data.pe, pe) for data, pe in zip(made, alone, strict=True))
        # It is left as it is, and goes on where the data set ended.
        assert bulk.sign == "random_batch"
        again = transform()
        expected = [again(data).pe for data in graphs() * 4 + graphs()[1:2]][-1]
        assert torch.equal(bulk(graphs()[1]).pe, expected)


def test_hop_pairs_shift_with_their_graph():
    members = [AddHopDistance(2)(data) for data in graphs()]
    batch = Batch.from_data_list(members)
    whole = Batch.from_data_list(graphs())
    expected = hop_pairs(TokenGraph.from_edge_index(whole.edge_index, ptr=whole.ptr), 2)
    assert torch.equal(batch.hop_index, expected.edge_index)
    assert torch.equal(batch.hop_distance, expected.distance)
    assert torch.equal(AddHopDistance(2)(whole).hop_index, expected.edge_index)
    assert torch.equal(precompute(graphs(), AddHopDistance(2))[1].hop_index, members[1].hop_index)


def test_precompute_takes_compositions_in_order():
    one_way = [Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)] * 2
    for transform in (Compose([ToUndirected(), Compose([AddDegree()])]), [ToUndirected(), AddDegree()]):
        assert [data.degree.tolist() for data in precompute(one_way, transform)] == [[1, 2, 1]] * 2
    assert precompute([], AddDegree()) == []


class Small(InMemoryDataset):
    def __init__(self) -> None:
        super().__init__()
        self.data, self.slices = self.collate(graphs())


def test_precompute_copies_a_data_set():
    dataset = Small()
    done = precompute(dataset[1:], AddLaplacianPE(3))
    assert isinstance(done, Small) and len(done) == 4 and len(dataset) == 5
    assert "pe" not in dataset[1]
    assert torch.equal(done[0].pe, AddLaplacianPE(3)(dataset[1]).pe)
    assert torch.equal(done[0].x, dataset[1].x)
    batch = next(iter(DataLoader(done, batch_size=4)))
    assert batch.pe.shape == (batch.num_nodes, 3)


def test_sign_flip_on_batches():
    batch = Batch.from_data_list([AddLaplacianPE(4)(data) for data in graphs()])
    flipped = SignFlip(seed=5)(batch)
    expected = flip_signs(batch.pe, ptr=batch.ptr, generator=torch.Generator().manual_seed(5))
    assert torch.equal(flipped.pe, expected)
    torch.manual_seed(5)
    assert torch.equal(SignFlip()(batch).pe, expected)
    same = SignFlip(per="batch", seed=1)(Batch.from_data_list([Data(pe=torch.ones(2, 30), num_nodes=2)] * 3)).pe
    assert torch.equal(same, same[:1].expand(6, 30)) and same.unique().numel() == 2


def test_sign_flip_draws_anew_each_time():
    data = Data(pe=torch.ones(2, 64), num_nodes=2)
    for flip in (SignFlip(), SignFlip(seed=0)):
        assert not torch.equal(flip(data).pe, flip(data).pe)
    assert (data.pe == 1).all()


def test_sign_flip_differs_between_workers_and_epochs():
    data = [Data(pe=torch.ones(1, 64), num_nodes=1)] * 4

    class Flipped(torch.utils.data.Dataset):
        def __init__(self, flip: SignFlip) -> None:
            self.flip = flip

        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> Data:
            return self.flip(data[index])

    for flip in (SignFlip(), SignFlip(seed=0)):
        loader = DataLoader(Flipped(flip), batch_size=1, num_workers=2)
        rows = torch.cat([batch.pe for _ in range(2) for batch in loader])
        assert rows.unique(dim=0).shape[0] == 8


def test_missing_encoding_to_flip():
    with pytest.raises(ArgumentError, match="no attribute 'pe'.*AddLaplacianPE"):
        SignFlip()(graphs()[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: AddLaplacianPE(0),
        lambda: AddLaplacianPE(2, sign="plus"),
        lambda: AddLaplacianPE(2, normalization="l1"),
        lambda: AddLaplacianPE(2, None, eigenvalues=True),
        lambda: AddRandomWalkPE(0),
        lambda: AddHopDistance(0),
        lambda: AddDegree(direction="up"),
        lambda: AddWL(mode="published", num_ids=3),
        lambda: SignFlip(per="node"),
    ],
)
def test_bad_arguments_fail_when_made(make):
    with pytest.raises(ArgumentError):
        make()


def test_bad_data():
    with pytest.raises(ArgumentTypeError, match="AddDegree needs a homogeneous PyG Data or Batch, got HeteroData"):
        AddDegree()(HeteroData())
    with pytest.raises(ArgumentTypeError, match="sequence of Data, got Data"):
        precompute(graphs()[0], AddDegree())
    bad = Data(x=torch.zeros(3, 1), edge_index=torch.tensor([[0], [3]]))
    good = Data(x=torch.zeros(9, 1), edge_index=torch.tensor([[0], [3]]))
    with pytest.raises(ArgumentError, match="edge_index"):
        precompute([bad, good], AddDegree())


def test_functions_come_without_pyg():
    program = (
        "import sys; sys.modules['torch_geometric'] = None\n"
        "import torch, graphattn.encoding as e; from graphattn.graph import TokenGraph\n"
        "print(e.laplacian_pe(TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]])), 1).shape)\n"
        "try: e.AddLaplacianPE\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "torch.Size([2, 1])" in printed
    assert "MissingPackageError" in printed and 'pip install "graphattn[pyg]"' in printed
