"""Where sets are found, what is cached, and that nothing is written, asked or fetched behind the user's back."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import sys
import threading
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data

from graphattn.encoding import AddLaplacianPE, AddRandomWalkPE
from graphattn.errors import ArgumentError, DataError, MissingPackageError
from graphattn_datasets import Splits, dataset_info, list_datasets, load_dataset
from graphattn_datasets.ogb import ATOM_DIMS, BOND_DIMS, Evaluator, OgbGraphs, OgbLinks, OgbNodes, official_evaluator


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def test_a_root_that_is_there_is_only_read(ogb_files: Any, monkeypatch: pytest.MonkeyPatch):
    folder = ogb_files.write("ogbg-molhiv")
    before = snapshot(folder)
    monkeypatch.setenv("GRAPHATTN_DATA", str(ogb_files.root.parent))
    ogb_files.root.rename(ogb_files.root.with_name("ogb"))  # as GRAPHATTN_DATA/ogb
    by_variable = load_dataset("ogbg_molhiv")
    assert isinstance(by_variable, Splits) and list(map(len, by_variable)) == [18, 6, 6]
    root = ogb_files.root.with_name("ogb")
    for place in (root, root / "ogbg_molhiv"):  # an OGB root, or the data set's own folder
        again = load_dataset("OGBG-molhiv", root=str(place))
        assert torch.equal(again.test[0].x, by_variable.test[0].x)
    assert list(snapshot(root / "ogbg_molhiv").values()) == list(before.values())
    one = load_dataset("ogbg_molhiv", split="val")
    assert len(one) == 6 and torch.equal(one[0].x, by_variable.val[0].x)


def test_the_folder_with_pyg_in_its_name_comes_first(ogb_files: Any):
    plain = ogb_files.write("ogbg-molesol", graphs=20)
    shutil.copytree(plain, plain.with_name("ogbg_molesol_pyg"))
    shutil.rmtree(plain)
    ogb_files.write("ogbg-molesol", graphs=10, seed=1)
    assert len(OgbGraphs("ogbg-molesol", str(ogb_files.root))) == 20


def test_other_contents_are_never_taken_from_the_cache(ogb_files: Any):
    ogb_files.write("ogbg-molesol", seed=1)
    first = OgbGraphs("ogbg-molesol", str(ogb_files.root))
    shutil.rmtree(ogb_files.root)
    ogb_files.write("ogbg-molesol", seed=2)
    second = OgbGraphs("ogbg-molesol", str(ogb_files.root))
    assert not torch.equal(first[0].x, second[0].x)


@pytest.mark.parametrize("make", [lambda: AddRandomWalkPE(4), lambda: AddLaplacianPE(3)])
def test_encodings_are_computed_once(ogb_files: Any, make: Any, monkeypatch: pytest.MonkeyPatch):
    ogb_files.write("ogbg-molhiv")
    transform = make()
    first = OgbGraphs("ogbg-molhiv", str(ogb_files.root), pre_transform=transform)
    plain = OgbGraphs("ogbg-molhiv", str(ogb_files.root))
    assert torch.equal(first[3].pe, transform(plain[3]).pe)
    monkeypatch.setattr(OgbGraphs, "read", lambda self: pytest.fail("processed twice"))
    again = OgbGraphs("ogbg-molhiv", str(ogb_files.root), pre_transform=make())
    assert all(torch.equal(a.pe, b.pe) for a, b in zip(first, again, strict=True))


def test_an_older_release_is_told_and_not_asked_about(ogb_files: Any, capsys: pytest.CaptureFixture[str]):
    folder = ogb_files.write("ogbg-molesol")
    (folder / "RELEASE_v1.txt").rename(folder / "RELEASE_v0.txt")
    OgbGraphs("ogbg-molesol", str(ogb_files.root))
    assert "RELEASE_v0.txt instead of RELEASE_v1.txt" in capsys.readouterr().err


def archive(folder: Path, name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for path in folder.rglob("*"):
            packed.write(path, Path(name) / path.relative_to(folder))
    return content.getvalue()


class Answer(io.BytesIO):
    def __init__(self, content: bytes, length: int | None = None) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content) if length is None else length)}


def test_a_missing_set_is_downloaded_once(ogb_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = ogb_files.write("ogbg-molhiv")
    content, asked = archive(folder, "hiv"), []
    wanted = OgbGraphs("ogbg-molhiv", str(ogb_files.root))[7]

    def urlopen(url: str, timeout: float) -> Answer:
        asked.append(url)
        return Answer(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for _ in range(2):
        found = OgbGraphs("ogbg-molhiv", str(tmp_path / "new"))
        assert torch.equal(found[7].x, wanted.x)
    assert asked == ["http://snap.stanford.edu/ogb/data/graphproppred/csv_mol_download/hiv.zip"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ogbg_molhiv"]  # no archive, no half folder


def test_copies_of_a_set_that_lay_elsewhere_are_no_set(ogb_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, data, cache = ogb_files.write("ogbg-molhiv"), tmp_path / "data", tmp_path / "cache"
    content = archive(folder, "hiv")
    monkeypatch.setenv("GRAPHATTN_CACHE", str(cache))
    monkeypatch.setenv("GRAPHATTN_DATA", str(ogb_files.root))
    wanted = OgbGraphs("ogbg-molhiv")[7]
    assert [path.name for path in (cache / "ogb" / "ogbg_molhiv").iterdir()] == ["processed"]
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer(content))
    monkeypatch.setenv("GRAPHATTN_DATA", str(data))
    assert torch.equal(OgbGraphs("ogbg-molhiv")[7].x, wanted.x)
    assert (cache / "ogb" / "ogbg_molhiv" / "raw").is_dir()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda content: Answer(content[:-100], len(content)), r"it ended after \d+ of \d+ bytes"),
        (lambda content: Answer(b"not a zip file"), "BadZipFile"),
        (lambda content: Answer(content, 10**18), "it needs about"),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    ogb_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, text: str
):
    content = archive(ogb_files.write("ogbg-molesol"), "esol")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: damage(content))
    with pytest.raises(DataError, match=rf"(?s){text}.*from: http://snap.*extract it to: .*ogbg_molesol"):
        OgbGraphs("ogbg-molesol", str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"(?s)no folder ogbl_ddi in .*download failed.*from: http.*GRAPHATTN_DATA is not"
    ):
        load_dataset("ogbl-ddi", root=str(tmp_path))


@pytest.mark.parametrize("name", ["edge", "node-feat", "edge-feat", "graph-label", "num-node-list", "num-edge-list"])
@pytest.mark.parametrize("how", ["truncated", "missing", "words", "rows"])
def test_damaged_files_are_named(ogb_files: Any, name: str, how: str):
    path = ogb_files.write("ogbg-molhiv") / "raw" / f"{name}.csv.gz"
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "missing":
        path.unlink()
    else:
        lines = gzip.decompress(content).splitlines(keepends=True)
        lines = [b"one\n", *lines[1:]] if how == "words" else lines[:-1]
        path.write_bytes(gzip.compress(b"".join(lines)))
    # A row too few shows in its own file, or where the counts that it holds are compared with another's.
    said = {"rows": "rows|its counts say", "missing": f"lacks raw/{name}.csv.gz"}.get(how, f"{name}.csv.gz")
    with pytest.raises(DataError, match=said):
        OgbGraphs("ogbg-molhiv", str(ogb_files.root))


def test_an_edge_to_no_node_is_found(ogb_files: Any):
    path = ogb_files.write("ogbg-molhiv") / "raw" / "edge.csv.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([b"0,999\n", *lines[1:]])))
    with pytest.raises(DataError, match="an edge names a node that its graph does not have"):
        OgbGraphs("ogbg-molhiv", str(ogb_files.root))


def test_wrong_splits_are_one_clear_error(ogb_files: Any):
    folder = ogb_files.write("ogbg-molhiv")
    dataset = OgbGraphs("ogbg-molhiv", str(ogb_files.root))
    with pytest.raises(DataError, match=r"has no split 'random' in .*; it has 'scaffold'"):
        dataset.get_idx_split("random")
    with pytest.raises(ArgumentError, match="split must be one of train, val, test"):
        load_dataset("ogbg_molhiv", root=str(ogb_files.root), split="valid")
    part = folder / "split" / "scaffold" / "valid.csv.gz"
    part.write_bytes(b"")  # what an interrupted download may leave, and gzip takes for a file of nothing
    with pytest.raises(DataError, match=r"valid.csv.gz is truncated or corrupt .*the file is empty"):
        dataset.get_idx_split()
    for numbers, text in (
        (b"99\n", r"part 'valid' of the split must name 0\.\.29"),
        (None, "parts of the split overlap"),
    ):
        part.write_bytes(
            (folder / "split/scaffold/test.csv.gz").read_bytes() if numbers is None else gzip.compress(numbers)
        )
        with pytest.raises(DataError, match=text):
            dataset.get_idx_split()
    shutil.rmtree(folder / "split")
    with pytest.raises(DataError, match="get the data set again"):
        dataset.get_idx_split()


class Malicious:
    def __reduce__(self) -> Any:
        return print, ("code from a split file ran",)


@pytest.mark.parametrize("new_format", [False, True])
def test_split_files_are_unpickled_with_an_allow_list(
    ogb_files: Any, capsys: pytest.CaptureFixture[str], new_format: bool
):
    folder = ogb_files.write("ogbl-ddi", nodes=20)
    dataset = OgbLinks("ogbl-ddi", str(ogb_files.root))
    good = dataset.get_edge_split()
    assert good["train"]["edge"].dtype == torch.int64 and good["valid"]["edge_neg"].shape == (30, 2)
    path = folder / "split" / "target" / "valid.pt"
    arrays = {key: value.numpy() for key, value in good["valid"].items()}
    for value in (arrays, good["valid"]):  # numpy and tensors, in both of torch's formats
        torch.save(value, path, _use_new_zipfile_serialization=new_format)
        assert torch.equal(dataset.get_edge_split()["valid"]["edge_neg"], good["valid"]["edge_neg"])
    torch.save({"edge": Malicious()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(DataError, match=r"valid\.pt is truncated or corrupt, or not safe to read"):
        dataset.get_edge_split()
    torch.save(arrays, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"valid\.pt is truncated or corrupt"):
        dataset.get_edge_split()
    assert "code from a split file ran" not in capsys.readouterr().out


def test_training_edges_that_no_file_holds_are_the_graph_s(ogb_files: Any, capsys: pytest.CaptureFixture[str]):
    folder = ogb_files.write("ogbl-ddi", nodes=20)
    dataset = OgbLinks("ogbl-ddi", str(ogb_files.root))
    wanted = dataset.get_edge_split()["train"]["edge"]
    (folder / "split" / "target" / "train.pt").unlink()
    assert torch.equal(dataset.get_edge_split()["train"]["edge"], wanted)
    assert "train.pt is missing; the training edges are taken from" in capsys.readouterr().err
    (folder / "split" / "target" / "test.pt").unlink()
    with pytest.raises(DataError, match=r"test\.pt is missing"):
        dataset.get_edge_split()


def test_what_ogb_processed_is_read_where_raw_files_are_gone(ogb_files: Any):
    folder = ogb_files.write("ogbg-molesol")
    wanted = OgbGraphs("ogbg-molesol", str(ogb_files.root))
    shutil.rmtree(folder / "raw")
    (folder / "processed").mkdir()
    path = folder / "processed" / "geometric_data_processed.pt"
    torch.save((wanted._data, wanted.slices), path)
    found = OgbGraphs("ogbg-molesol", str(ogb_files.root))
    assert len(found) == 30 and torch.equal(found[4].edge_index, wanted[4].edge_index)
    torch.save((Malicious(), None), path)
    with pytest.raises(DataError, match="not safe to read"):
        OgbGraphs("ogbg-molesol", str(ogb_files.root))


def test_a_set_that_does_not_fit_is_refused_before_it_is_read(ogb_files: Any, monkeypatch: pytest.MonkeyPatch):
    import graphattn_datasets.ogb.size as size

    ogb_files.write("ogbn-products", nodes=50, features=10)
    ogb_files.write("ogbn-papers100M", nodes=50, features=10)
    monkeypatch.setattr(size, "available_memory", lambda: 1000)
    for name in ("ogbn-products", "ogbn-papers100M"):
        with pytest.raises(DataError, match=rf"{name} does not fit: .* GB are free.*NeighborDataModule"):
            OgbNodes(name, str(ogb_files.root))
    monkeypatch.setattr(size, "available_memory", lambda: 10**9)
    for name in ("ogbn-products", "ogbn-papers100M"):
        dataset = OgbNodes(name, str(ogb_files.root))
        fields = [dataset[0].x, dataset[0].edge_index, *([dataset[0].node_year] if "papers" in name else [])]
        assert size.estimate_bytes(dataset.folder, dataset.meta)[0] == pytest.approx(
            sum(t.nbytes for t in fields), rel=0.02
        )


def test_the_wrong_class_and_unknown_names(tmp_path: Path):
    with pytest.raises(ArgumentError, match="must be a graph property set for OgbGraphs, 'ogbn-arxiv' is another kind"):
        OgbGraphs("ogbn-arxiv", str(tmp_path))
    with pytest.raises(ArgumentError, match="several types of nodes"):
        OgbNodes("ogbn-mag", str(tmp_path))
    with pytest.raises(ArgumentError, match="must be a data set of OGB, got 'ogbg-mol'"):
        OgbGraphs("ogbg-mol", str(tmp_path))


def test_the_official_evaluator_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name == "ogb" or name.startswith("ogb.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ogb", None)
    with pytest.raises(MissingPackageError, match=r"graphattn\[ogb\]"):
        official_evaluator("ogbg-molhiv")
    with pytest.raises(MissingPackageError, match=r"graphattn\[ogb\]"):
        Evaluator("ogbg-molhiv", official=True)


def test_importing_is_light_and_ogb_asks_no_network():
    light = "import sys, graphattn_datasets.ogb; "
    light += "assert not {'torch', 'torch_geometric', 'ogb', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True)
    pytest.importorskip("ogb")
    code = "import sys, threading; from graphattn_datasets.ogb.evaluate import import_ogb; import_ogb('ogb.version'); "
    code += "assert threading.active_count() == 1 and 'outdated' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert threading.active_count() < 100


def test_catalog():
    names = [name for name in list_datasets() if name.startswith(("ogb", "pcqm"))]
    assert {"ogbg_molhiv", "ogbg_molpcba", "ogbn_arxiv", "ogbn_products", "ogbl_ddi", "ogbl_collab", "pcqm4mv2"} <= set(
        names
    )
    hiv = dataset_info("ogbg-molhiv")
    assert (hiv.task, hiv.metric, hiv.out_channels, hiv.multilabel) == ("graph_classification", "roc_auc", 1, True)
    assert (hiv.node_vocab, hiv.edge_vocab) == (ATOM_DIMS, BOND_DIMS)
    assert dataset_info("ogbg-molesol").metric == "rmse" and dataset_info("ogbn-arxiv").out_channels == 40
    assert dataset_info("ogbl-ddi").metric == "hits@20" and "ogbl_ddi" in list_datasets("link")


def smiles_root(root: Path, rows: list[tuple[str, str]]) -> Path:
    folder = root / "pcqm4m-v2"
    (folder / "raw").mkdir(parents=True)
    lines = [f"{n},{smiles},{gap}\n" for n, (smiles, gap) in enumerate(rows)]
    (folder / "raw" / "data.csv.gz").write_bytes(gzip.compress("".join(["idx,smiles,homolumogap\n", *lines]).encode()))
    parts = {"train": [0, 1], "valid": [2], "test-dev": [3], "test-challenge": [4]}
    torch.save({part: np.array(numbers) for part, numbers in parts.items()}, folder / "split_dict.pt")
    return folder


def test_pcqm4mv2_from_smiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [("C", "5.5"), ("CC", "4.5"), ("CCC", "3.5"), ("CCCC", ""), ("C", "")]
    smiles_root(tmp_path, rows)
    monkeypatch.setattr("graphattn_datasets.ogb.smiles.available", lambda name: False)
    with pytest.raises(MissingPackageError, match='holds SMILES.*"rdkit"'):
        load_dataset("pcqm4mv2", root=str(tmp_path))

    def smiles2graph(smiles: str) -> dict[str, np.ndarray]:
        size = len(smiles)
        path = np.stack((np.arange(size - 1), np.arange(1, size)))
        return {
            "node_feat": np.full((size, 9), 1),
            "edge_index": np.concatenate((path, path[::-1]), axis=1),
            "edge_feat": np.zeros((2 * (size - 1), 3), dtype=np.int64),
        }

    stub = type("utils", (), {"smiles2graph": staticmethod(smiles2graph)})
    monkeypatch.setattr("graphattn_datasets.ogb.smiles.available", lambda name: True)
    monkeypatch.setattr("graphattn_datasets.ogb.smiles.import_ogb", lambda name: stub)
    parts = load_dataset("pcqm4m-v2", root=str(tmp_path))
    assert [len(part) for part in parts] == [2, 1, 1]  # test labels are hidden: the validation set is reported
    assert parts.train[1].num_nodes == 2 and parts.train[1].y.tolist() == [4.5] and parts.test[0].y.tolist() == [3.5]
    whole = OgbGraphs("pcqm4mv2", str(tmp_path))
    assert whole[3].y.isnan().all() and isinstance(whole[3], Data) and whole[0].edge_index.shape == (2, 0)
