"""The cache: copies for each argument, safety, atomic writes, missing files and downloads."""

from __future__ import annotations

import os
import pickle
import urllib.request
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_geometric")

import torch_geometric.datasets as pyg
from torch_geometric.data import Data

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets import Planetoid, SBMCluster, load_dataset
from graphattn_datasets.storage import Collated, read_graphs, write_graphs

SMALL = {"num_graphs": (3, 1, 1)}


class AddNumber:
    def __init__(self, number):
        self.number, self.calls = number, 0

    def __call__(self, data):
        data.number = torch.tensor([self.number])
        return data


def processed(dataset):
    return Path(dataset.processed_paths[0])


def test_each_pre_transform_argument_has_its_own_copy(capsys):
    one = SBMCluster(pre_transform=AddNumber(1), **SMALL)
    first = capsys.readouterr().err
    two = SBMCluster(pre_transform=AddNumber(2), **SMALL)
    second = capsys.readouterr().err
    assert one[0].number.item() == 1 and two[0].number.item() == 2
    assert processed(one).parent != processed(two).parent
    assert "making CLUSTER" in first and "other arguments" not in first
    assert "other arguments" in second and processed(one).parent.name in second
    stamp = processed(one).stat().st_mtime_ns
    again = SBMCluster(pre_transform=AddNumber(1), **SMALL)
    assert again[2].number.item() == 1 and processed(again).stat().st_mtime_ns == stamp
    assert capsys.readouterr().err == ""


def test_another_version_of_pyg_has_its_own_copy(monkeypatch):
    import torch_geometric

    before = processed(SBMCluster(**SMALL))
    monkeypatch.setattr(torch_geometric, "__version__", "0.0.0")
    assert processed(SBMCluster(**SMALL)) != before


def test_the_message_names_the_split_and_the_number_of_graphs(raw, capsys):
    load_dataset("cluster", num_graphs=(3, 2, 1))
    raw.zinc()
    load_dataset("zinc_12k", split="val")
    raw.planetoid()
    load_dataset("cora")
    beginnings = [line.partition(" in ")[0].partition("making ")[2] for line in capsys.readouterr().err.splitlines()]
    assert beginnings == [
        "CLUSTER train (3 graphs)",
        "CLUSTER val (2 graphs)",
        "CLUSTER test (1 graphs)",
        "ZINC-12k val",
        "Cora",
    ]


def test_force_reload_makes_the_copy_again(capsys):
    SBMCluster(**SMALL)
    capsys.readouterr()
    SBMCluster(force_reload=True, **SMALL)
    assert "making CLUSTER" in capsys.readouterr().err


def test_pre_filter_and_transform():
    everything = SBMCluster(**SMALL)
    limit = everything[1].num_nodes
    some = SBMCluster(pre_filter=lambda data: data.num_nodes != limit, transform=AddNumber(9), **SMALL)
    assert [data.num_nodes for data in some] == [data.num_nodes for data in everything if data.num_nodes != limit]
    assert some[0].number.item() == 9
    with pytest.raises(ArgumentError, match="pre_filter leaves no graph"):
        SBMCluster(pre_filter=lambda data: False, **SMALL)


def test_an_error_of_pre_transform_is_not_disguised_and_leaves_no_copy(tmp_path):
    def broken(data):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        SBMCluster(tmp_path, pre_transform=broken, **SMALL)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_pickle_in_the_cache_is_never_executed(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    dataset = SBMCluster(tmp_path, **SMALL)
    reference = dataset[0].edge_index
    for content in (pickle.dumps(Evil(), protocol=2), None):
        if content is None:
            torch.save({"format": 1, "fields": Evil()}, processed(dataset))
        else:
            processed(dataset).write_bytes(content)
        capsys.readouterr()
        again = SBMCluster(tmp_path, **SMALL)
        assert torch.equal(again[0].edge_index, reference)
        assert "made again" in capsys.readouterr().err
    # PyG's own base class would unpickle these two.
    for name in ("pre_transform.pt", "pre_filter.pt"):
        (processed(dataset).parent / name).write_bytes(pickle.dumps(Evil(), protocol=2))
    SBMCluster(tmp_path, **SMALL)
    SBMCluster(tmp_path, force_reload=True, **SMALL)
    assert not (tmp_path / "executed").exists()


def test_a_truncated_copy_is_made_again(tmp_path, capsys):
    dataset = SBMCluster(tmp_path, **SMALL)
    path = processed(dataset)
    path.write_bytes(path.read_bytes()[:200])
    assert torch.equal(SBMCluster(tmp_path, **SMALL)[1].x, dataset[1].x)
    assert "cannot be read safely" in capsys.readouterr().err


def test_graphs_survive_storage_bit_for_bit(tmp_path):
    fields = {
        "small": torch.tensor([0, 255]),
        "negative": torch.tensor([-1, 300]),
        "large": torch.tensor([2**40, -(2**40)]),
        "none": torch.empty(0, dtype=torch.int64),
        "real": torch.rand(8, dtype=torch.float64)[2:5],
        "flags": torch.tensor([True, False]),
        "text": "abc",
    }
    path = str(tmp_path / "graphs.pt")
    write_graphs(path, Collated(Data(**fields), {"small": torch.tensor([0, 1, 2])}, {"sizes": {"a": 1}}))
    back = read_graphs(path)
    for name, value in fields.items():
        same = torch.equal(back.data[name], value) if isinstance(value, torch.Tensor) else back.data[name] == value
        assert same, name
        assert not isinstance(value, torch.Tensor) or back.data[name].dtype == value.dtype
    assert back.slices["small"].tolist() == [0, 1, 2] and back.extra == {"sizes": {"a": 1}}


def test_fields_that_cannot_be_stored_safely_are_named():
    with pytest.raises(ArgumentError, match="AddNumber into the field 'thing'"):
        SBMCluster(pre_transform=lambda data: data.update({"thing": AddNumber(1)}) or data, **SMALL)


def test_a_write_that_fails_leaves_the_old_copy_and_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "graphs.pt"
    write_graphs(str(path), Collated(Data(x=torch.ones(2)), None))
    before = path.read_bytes()

    def full_disk(payload, target):
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_graphs(str(path), Collated(Data(x=torch.zeros(2)), None))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["graphs.pt"]


def test_the_data_folder_is_only_read(raw):
    for write in (raw.planetoid, raw.zinc, raw.peptides, raw.tu, raw.dgcnn):
        write()
    raw.heterophilous("npz", "texas.npz")
    before = raw.snapshot()
    for name in ("cora", "zinc_full", "zinc_12k", "peptides_func", "enzymes", "mutag", "texas"):
        load_dataset(name, pre_transform=AddNumber(1))
    assert raw.snapshot() == before


def test_a_stored_copy_needs_no_raw_file(raw, monkeypatch):
    raw.planetoid()
    expected = load_dataset("cora")[0].x
    monkeypatch.delenv("GRAPHATTN_DATA")
    assert torch.equal(load_dataset("cora")[0].x, expected)


@pytest.mark.parametrize(
    ("name", "file", "address", "place"),
    [
        ("pubmed", "ind.pubmed.allx", "github.com/kimiyoung/planetoid", "planetoid/PubMed/raw"),
        ("questions", "questions.npz", "heterophilous-graphs/raw/main/data/questions.npz", "questions/raw"),
        ("zinc_12k", "train.pickle", "molecules.zip", "zinc/raw"),
        ("peptides_func", "train.pt", "peptidesfunc.zip", "peptides-func/raw"),
        ("enzymes", "ENZYMES_A.txt", "graphkerneldatasets/ENZYMES.zip", "tu_graphs/ENZYMES/raw"),
    ],
)
def test_missing_files_give_one_error_with_what_from_where_and_where_to(name, file, address, place, tmp_path):
    with pytest.raises(DataError) as caught:
        load_dataset(name, tmp_path / "root")
    text = str(caught.value)
    for part in (file, address, place, str(tmp_path / "root"), "GRAPHATTN_DATA is not set", "no network in tests"):
        assert part in text
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["cora", "ogbg-molesol", "mnist", "cifar10", "tinyshakespeare", "weizmann_horses"])
def test_a_data_folder_that_is_none_is_mentioned(name, monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"\(GRAPHATTN_DATA is .*nowhere, which is not a folder\)"):
        load_dataset(name)


def test_a_root_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot create the cache folder"):
        SBMCluster(tmp_path / "file" / "root", **SMALL)


class _Answer:
    def close(self):
        pass


def test_a_download_goes_through_pyg_into_the_root(raw, tmp_path, monkeypatch):
    raw.planetoid()
    source = raw.folder / "planetoid/Cora/raw"
    monkeypatch.delenv("GRAPHATTN_DATA")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: _Answer())

    def download(self):
        for name in self.raw_file_names:
            (Path(self.raw_dir) / name).write_bytes((source / name).read_bytes())

    monkeypatch.setattr(pyg.Planetoid, "download", download)
    dataset = Planetoid(tmp_path / "root", "Cora")
    assert dataset[0].num_nodes == 520
    assert sorted(os.listdir(tmp_path / "root" / "Cora" / "raw")) == sorted(os.listdir(source))
    assert os.listdir(tmp_path / "root") == ["Cora"]


def test_an_interrupted_download_leaves_no_half_file(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: _Answer())

    def download(self):
        (Path(self.raw_dir) / "ind.cora.x").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pyg.Planetoid, "download", download)
    with pytest.raises(KeyboardInterrupt):
        Planetoid(tmp_path / "root", "Cora")
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
