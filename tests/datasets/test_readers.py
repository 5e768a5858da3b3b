"""Each reader on tiny files in the real on-disk format."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torch_geometric")

import torch_geometric.datasets as pyg

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets import DGCNNText, HeterophilousGraphDataset, Planetoid, TUDataset, load_dataset


def edges(data):
    return data.edge_index.T.tolist()


def truncate(path, keep=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_planetoid(raw):
    raw.planetoid()
    dataset = load_dataset("Cora")
    assert isinstance(dataset, pyg.Planetoid) and len(dataset) == 1
    data = dataset[0]
    # Test rows come back to their own numbers.
    assert torch.equal(data.x, torch.arange(1040.0).view(520, 2))
    assert torch.equal(data.y, torch.arange(520) % 3)
    assert data.train_mask.nonzero().view(-1).tolist() == [0, 1, 2, 3]
    assert int(data.val_mask.sum()) == 500
    assert data.test_mask.nonzero().view(-1).tolist() == list(range(510, 520))
    assert data.num_edges == 1040 and data.is_undirected()
    full = load_dataset("cora", split="full")[0]
    assert int(full.train_mask.sum()) == 10


def test_heterophilous_keeps_ten_splits_or_takes_one(raw):
    raw.heterophilous("minesweeper", "raw", "minesweeper.npz")
    data = load_dataset("minesweeper", split_index=6)[0]
    assert edges(data) == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    assert data.x.dtype == torch.float32 and data.y.tolist() == [0, 1, 1, 0]
    assert data.train_mask.tolist() == [False, False, True, False]
    assert data.val_mask.tolist() == [False, False, False, True]
    every = HeterophilousGraphDataset(name="Minesweeper")
    assert isinstance(every, pyg.HeterophilousGraphDataset)
    assert every[0].train_mask.shape == (4, 10)
    assert torch.equal(every[0].train_mask[:, 6], data.train_mask)


def test_the_older_heterophilous_sets_are_read_from_their_own_folder(raw):
    raw.heterophilous("npz", "squirrel_filtered.npz")
    data = load_dataset("squirrel-filtered")[0]
    assert data.num_edges == 6 and data.train_mask.tolist() == [True, False, False, False]


def test_zinc_subset_takes_the_original_validation_and_test_graphs(raw):
    raw.zinc()
    train, val, test = load_dataset("zinc_12k")
    assert "NOT the official" in train.exactness and val.exactness == test.exactness == "original graphs"
    assert [graph.y.tolist() for graph in train] == [[3.0], [0.5]]  # the order of the draw
    path, chain = train[1], train[0]
    assert path.x.tolist() == [0, 1, 2] and path.x.dtype == torch.int64
    assert edges(path) == [[0, 1], [1, 0], [1, 2], [2, 1]] and path.edge_attr.tolist() == [1, 1, 2, 2]
    assert edges(chain) == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    assert chain.edge_attr.tolist() == [2, 2, 1, 1, 1, 1]
    assert (val[0].y.item(), test[0].y.item()) == (7.0, 8.0)
    assert val[0].x.tolist() == [1, 2, 3] and edges(val[0]) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert val[0].edge_attr.dtype == torch.int64 and val[0].y.dtype == torch.float32


def test_zinc_full_takes_its_sets_from_the_arrays(raw):
    raw.zinc()
    train, val, test = load_dataset("zinc_full")
    assert train.y.tolist() == [0.5, -1.0, 3.0]
    assert edges(val[0]) == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    assert test[0].x.tolist() == [27, 26] and test[0].edge_attr.tolist() == [1, 1]


def test_peptides(raw):
    raw.peptides()
    train, val, test = load_dataset("peptides_func")
    data = train[0]
    assert torch.equal(data.x, torch.arange(27).view(3, 9))
    assert edges(data) == [[0, 1], [1, 0], [2, 1], [1, 2]]
    assert data.edge_attr.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert data.y.shape == (1, 10) and data.y.dtype == torch.float32
    assert val[0].y.argmax().item() == 1 and test[0].y.argmax().item() == 2
    assert edges(test[0]) == [[1, 0], [0, 1]] and test[0].x[0, 0].item() == 45


def test_tu_text_with_and_without_attributes(raw):
    raw.tu()
    dataset = load_dataset("enzymes")
    assert isinstance(dataset, pyg.TUDataset) and len(dataset) == 20
    assert dataset[2].x.tolist() == [[2.5, 0, 1, 0, 0], [2.5, 1, 0, 1, 0], [2.5, 2, 0, 0, 1]]
    assert edges(dataset[2]) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert dataset.y.tolist() == [0, 1] * 10
    labels = TUDataset(name="ENZYMES")
    assert labels[2].x.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_tu_folds(raw):
    raw.tu()
    splits = load_dataset("enzymes", fold=9)
    assert [len(part) for part in splits] == [16, 2, 2]
    assert splits.test[0].x[0, 0].item() == 18.5 and splits.val[0].x[0, 0].item() == 0.5


def test_dgcnn_text_has_the_fields_of_tu(raw):
    raw.dgcnn()
    dataset = load_dataset("mutag")
    assert isinstance(dataset, DGCNNText) and len(dataset) == 20
    data = dataset[0]
    assert data.x.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert edges(data) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert dataset.y.tolist() == [1, 0] * 10
    test_graphs = set()
    for index in range(10):
        train, val, test = dataset.fold(index)
        assert sorted(torch.cat((train, val, test)).tolist()) == list(range(20))
        test_graphs |= set(test.tolist())
    assert test_graphs == set(range(20))


def test_dgcnn_text_without_node_labels_has_no_x(raw):
    raw.dgcnn("IMDBBINARY", tags=(0, 0, 0))
    data = load_dataset("imdb_binary")[3]
    assert data.x is None and data.num_nodes == 3 and data.num_edges == 4


@pytest.mark.parametrize(
    ("write", "name", "file"),
    [
        ("planetoid", "cora", "planetoid/Cora/raw/ind.cora.allx"),
        ("planetoid", "cora", "planetoid/Cora/raw/ind.cora.graph"),
        ("zinc", "zinc_full", "zinc/zinc_full_graphs.npz"),
        ("zinc", "zinc_12k", "zinc/subset_official/test.npz"),
        ("peptides", "peptides_func", "peptides-func/peptides_func_graphs.npz"),
        ("tu", "enzymes", "tu_graphs/ENZYMES/raw/ENZYMES_A.txt"),
        ("dgcnn", "mutag", "tu_graphs/MUTAG/MUTAG.txt"),
    ],
)
def test_a_truncated_file_gives_one_error_that_names_it(raw, write, name, file):
    getattr(raw, write)()
    truncate(raw.folder / file)
    with pytest.raises(DataError) as caught:
        load_dataset(name)
    assert str(raw.folder / file) in str(caught.value)
    assert "truncated or corrupt" in str(caught.value)


@pytest.mark.parametrize(
    ("write", "name", "file", "lines"),
    [
        ("planetoid", "cora", "planetoid/Cora/raw/ind.cora.test.index", 9),
        ("tu", "enzymes", "tu_graphs/ENZYMES/raw/ENZYMES_A.txt", 41),
        ("tu", "enzymes", "tu_graphs/ENZYMES/raw/ENZYMES_graph_labels.txt", 12),
        ("tu", "enzymes", "tu_graphs/ENZYMES/raw/ENZYMES_node_labels.txt", 50),
        ("tu", "enzymes", "tu_graphs/ENZYMES/raw/ENZYMES_node_attributes.txt", 50),
        ("dgcnn", "mutag", "tu_graphs/MUTAG/MUTAG.txt", 41),
    ],
)
def test_a_text_file_cut_between_two_lines_is_found_too(raw, write, name, file, lines):
    getattr(raw, write)()
    path = raw.folder / file
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(DataError) as caught:
        load_dataset(name)
    assert f"{path} is truncated or corrupt" in str(caught.value)


@pytest.mark.parametrize(("file", "reason"), [("A", "joins two graphs"), ("graph_indicator", "are not in a row")])
def test_a_number_that_is_another_is_found(raw, file, reason):
    raw.tu()
    path = raw.folder / f"tu_graphs/ENZYMES/raw/ENZYMES_{file}.txt"
    lines = path.read_text().splitlines(keepends=True)
    if file == "A":
        last = lines[-1].split(",")[1].strip()
        lines[:2] = [f"1, {last}\n", f"{last}, 1\n"]
    else:
        lines[1] = lines[-1]
    path.write_text("".join(lines))
    with pytest.raises(DataError, match=f"ENZYMES_{file}.txt is truncated or corrupt: .* {reason}"):
        load_dataset("enzymes")


@pytest.mark.parametrize(
    "file", ["10fold_idx/train_idx-4.txt", "10fold_idx/test_idx-4.txt", "10fold_idx/test_idx-5.txt"]
)
def test_a_truncated_fold_is_found(raw, file):
    raw.dgcnn()
    truncate(raw.folder / "tu_graphs/MUTAG" / file)
    with pytest.raises(DataError, match="MUTAG.*[Gg]et"):
        load_dataset("mutag", fold=3)


def test_a_truncated_npz_of_a_node_set(raw):
    raw.heterophilous("npz", "texas.npz")
    truncate(raw.folder / "heterophilous/npz/texas.npz")
    with pytest.raises(DataError, match=r"texas\.npz is truncated or corrupt"):
        load_dataset("texas")


def test_rows_that_contradict_their_counts_are_refused(raw):
    import numpy as np

    raw.zinc()
    path = raw.folder / "zinc/zinc_full_graphs.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "atom": arrays["atom"][:-1]})
    with pytest.raises(DataError, match="atom has 13 rows, its counts say 14"):
        load_dataset("zinc_full")
    np.savez(path, **{**arrays, "bond": np.where(arrays["bond"] == 3, 9, arrays["bond"])})
    with pytest.raises(DataError, match="names an atom that its molecule does not have"):
        load_dataset("zinc_full")
    np.savez(path, **{name: array for name, array in arrays.items() if name != "y"})
    with pytest.raises(DataError, match="no array named y"):
        load_dataset("zinc_full")


def test_text_after_the_announced_graphs_is_refused(raw):
    path = raw.dgcnn()
    path.write_text(path.read_text().replace("20\n", "19\n", 1))
    with pytest.raises(DataError, match="text after the 19 graphs"):
        load_dataset("mutag")


def test_missing_folds_are_named(raw):
    raw.dgcnn()
    (raw.folder / "tu_graphs/MUTAG/10fold_idx/test_idx-1.txt").unlink()
    with pytest.raises(DataError, match=r"test_idx-1\.txt is missing.*10fold_idx"):
        load_dataset("mutag", fold=0)


def test_bad_arguments_are_named(raw):
    raw.heterophilous("npz", "texas.npz")
    raw.planetoid()
    raw.dgcnn()
    with pytest.raises(ArgumentError, match=r"split_index must be in 0\.\.9, got 10"):
        load_dataset("texas", split_index=10)
    with pytest.raises(ArgumentError, match="split must be None for 'texas'"):
        load_dataset("texas", split="train")
    with pytest.raises(ArgumentError, match="split must be one of public"):
        load_dataset("cora", split="train")
    with pytest.raises(ArgumentError, match="split_index must be None"):
        Planetoid(name="cora", split_index=1)
    with pytest.raises(ArgumentError, match="split_index must be None"):
        load_dataset("cora", split_index=1)
    with pytest.raises(ArgumentError, match=r"fold must be an integer in 0\.\.9"):
        load_dataset("mutag", fold=10)
    with pytest.raises(ArgumentError, match="needs fold"):
        load_dataset("mutag", split="train")
