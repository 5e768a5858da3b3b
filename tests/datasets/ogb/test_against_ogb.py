"""Field by field and figure by figure what the ogb package itself makes of the same files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric")
pytest.importorskip("ogb")

from graphattn.errors import ArgumentError
from graphattn_datasets.ogb import (
    ATOM_DIMS,
    BOND_DIMS,
    OGB_SETS,
    Evaluator,
    OgbGraphs,
    OgbLinks,
    OgbNodes,
    official_evaluator,
)
from graphattn_datasets.ogb.evaluate import import_ogb

KINDS = {"graph": "graphproppred", "node": "nodeproppred", "link": "linkproppred"}


@pytest.fixture
def theirs(tmp_path: Path) -> Any:
    """Loads a copy of a folder with ogb's own class, which is let unpickle what it wrote itself."""

    def load(folder: Path) -> Any:
        from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
        from torch_geometric.data.storage import GlobalStorage

        name = next(meta.name for meta in OGB_SETS.values() if meta.folder == folder.name)
        shutil.copytree(folder, tmp_path / "theirs" / folder.name)
        kind = OGB_SETS[name].kind
        cls = getattr(import_ogb(f"ogb.{KINDS[kind]}"), f"Pyg{kind.title()}PropPredDataset")
        scalar = [np._core.multiarray.scalar, np.dtype, type(np.dtype("i8"))]  # a number of nodes
        with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage, *scalar]):
            return cls(name, root=str(tmp_path / "theirs"))

    return load


def same(ours: Any, theirs: Any) -> None:
    theirs = int(theirs) if isinstance(theirs, np.integer) else theirs
    assert type(ours) is type(theirs)
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        # pandas rounds decimal fractions once more than strtod.
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if ours.is_floating_point() else 0, atol=0, equal_nan=True)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("ogbg-molhiv", False),
        ("ogbg-moltox21", True),
        ("ogbg-molbace", True),
        ("ogbg-molesol", False),
        ("ogbg-ppa", False),
        ("ogbg-code2", False),
    ],
)
def test_graph_sets(ogb_files: Any, theirs: Any, name: str, missing: bool):
    folder = ogb_files.write(name, missing=missing)
    ours, them = OgbGraphs(name, str(ogb_files.root)), theirs(folder)
    assert len(ours) == len(them) == 30
    for mine, their in zip(ours, them, strict=True):
        assert mine.num_nodes == their.num_nodes
        for key in set(their.keys()) - {"num_nodes"}:  # counted from x where there is one
            same(mine[key], their[key])
    mine, their = ours.get_idx_split(), them.get_idx_split()
    assert all(torch.equal(mine[part], their[part]) for part in ("train", "valid", "test"))


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products", "ogbn-proteins", "ogbn-papers100M"])
def test_node_sets(ogb_files: Any, theirs: Any, name: str):
    folder = ogb_files.write(name, nodes=40)
    ours, them = OgbNodes(name, str(ogb_files.root)), theirs(folder)
    mine, their = ours[0], them[0]
    for key in their.keys():
        wanted = their.y.squeeze(1) if key == "y" and their.y.shape[1] == 1 else their[key]
        same(mine[key], wanted)
    split = them.get_idx_split()
    for part, mask in (("train", mine.train_mask), ("valid", mine.val_mask), ("test", mine.test_mask)):
        assert mask.nonzero().view(-1).tolist() == sorted(split[part].tolist())
        assert torch.equal(ours.get_idx_split()[part], split[part])


@pytest.mark.parametrize(
    "name", ["ogbl-ddi", "ogbl-collab", "ogbl-ppa", "ogbl-citation2", "ogbl-wikikg2", "ogbl-vessel"]
)
def test_link_sets(ogb_files: Any, theirs: Any, name: str, monkeypatch: pytest.MonkeyPatch):
    folder = ogb_files.write(name, nodes=20)
    ours, them = OgbLinks(name, str(ogb_files.root)), theirs(folder)
    for key in them[0].keys():
        same(ours[0][key], them[0][key])
    plain = torch.load
    monkeypatch.setattr(torch, "load", lambda path: plain(path, weights_only=False))  # files of our own
    wanted = them.get_edge_split()
    monkeypatch.undo()
    monkeypatch.setenv("GRAPHATTN_CACHE", str(ogb_files.root / "cache"))
    for part, edges in ours.get_edge_split().items():
        assert edges.keys() == wanted[part].keys()
        for key, value in edges.items():
            same(value, wanted[part][key])


@pytest.mark.parametrize("kind", ["graph", "node", "link"])
def test_facts_are_those_of_the_master_files(kind: str):
    import pandas as pd

    module = import_ogb(f"ogb.{KINDS[kind]}")
    table = pd.read_csv(Path(module.__file__).with_name("master.csv"), index_col=0, keep_default_na=False)
    known = {name: meta for name, meta in OGB_SETS.items() if meta.kind == kind and meta.name != "pcqm4mv2"}
    assert set(known) == set(table.columns)
    for name, meta in known.items():
        row = table[name]
        flag = {key: row.get(key) == "True" for key in table.index}
        assert (meta.metric, meta.split, meta.archive) == (row["eval metric"], row["split"], row["download_name"])
        assert (meta.url, meta.version) == (row["url"], int(row["version"]))
        assert (meta.inverse, meta.node_feat) == (flag["add_inverse_edge"], flag["has_node_attr"])
        assert (meta.edge_feat, meta.hetero, meta.binary) == (
            flag["has_edge_attr"],
            flag.get("is hetero", False),
            flag["binary"],
        )
        files = [
            tuple(part for part in row[f"additional {x} files"].split(",") if part != "None") for x in ("node", "edge")
        ]
        assert [meta.node_files, meta.edge_files] == files
        if kind != "link":
            assert (meta.num_tasks, meta.num_classes) == (int(row["num tasks"]), max(0, int(row["num classes"])))
        wanted = {"KG completion": "kg", "link prediction": "link"}.get(
            row["task type"], row["task type"].split(" ")[0]
        )
        assert meta.task == wanted


def test_features_are_ogb_s():
    features = import_ogb("ogb.utils.features")
    assert list(ATOM_DIMS) == features.get_atom_feature_dims()
    assert list(BOND_DIMS) == features.get_bond_feature_dims()


def rows(count: int, tasks: int, generator: torch.Generator, missing: bool = True) -> tuple[Tensor, Tensor]:
    y = torch.randint(0, 2, (count, tasks), generator=generator).float()
    if missing:
        y[torch.rand(y.shape, generator=generator) < 0.3] = float("nan")
    scores = torch.randn(count, tasks, generator=generator).round(decimals=1)  # with ties
    return y, scores


@pytest.mark.parametrize("name", ["ogbg-molhiv", "ogbg-moltox21", "ogbg-molpcba", "ogbg-molesol", "ogbn-proteins"])
def test_scores_of_rows_are_the_official_ones(name: str):
    generator = torch.Generator().manual_seed(1)
    y, scores = rows(200, OGB_SETS[name].num_tasks, generator)
    y[:, 0] = y[:, 0].nan_to_num(0.0) if OGB_SETS[name].num_tasks > 1 else y[:, 0]
    inputs = {"y_true": y, "y_pred": scores}
    wanted = official_evaluator(name).eval(inputs)
    assert Evaluator(name, official=False).eval(inputs) == pytest.approx(wanted, rel=1e-6)
    assert Evaluator(name).official and Evaluator(name).eval(inputs) == pytest.approx(wanted, rel=1e-12)
    arrays = {key: value.numpy() for key, value in inputs.items()}
    assert Evaluator(name, official=False).eval(arrays) == pytest.approx(wanted, rel=1e-6)


def test_accuracy_and_words_are_the_official_ones():
    y, guess = torch.randint(0, 5, (50, 1)), torch.randint(0, 5, (50, 1))
    for name in ("ogbn-arxiv", "ogbg-ppa"):
        inputs = {"y_true": y, "y_pred": guess}
        assert Evaluator(name, official=False).eval(inputs) == pytest.approx(official_evaluator(name).eval(inputs))
    words = {"seq_ref": [["a", "b"], ["c"], ["d", "d"]], "seq_pred": [["b", "x", "a"], [], ["d"]]}
    assert Evaluator("ogbg-code2", official=False).eval(words) == pytest.approx(
        official_evaluator("ogbg-code2").eval(words)
    )


@pytest.mark.parametrize("name", ["ogbl-ddi", "ogbl-collab", "ogbl-ppa", "ogbl-vessel"])
@pytest.mark.parametrize("negatives", [5, 500])
def test_scores_of_links_are_the_official_ones(name: str, negatives: int):
    positive, negative = torch.randn(300).round(decimals=1), torch.randn(negatives).round(decimals=1)
    inputs = {"y_pred_pos": positive, "y_pred_neg": negative}
    assert Evaluator(name, official=False).eval(inputs) == pytest.approx(official_evaluator(name).eval(inputs))


def test_ranks_are_the_official_ones():
    inputs = {"y_pred_pos": torch.randn(40).round(decimals=1), "y_pred_neg": torch.randn(40, 30).round(decimals=1)}
    ours = Evaluator("ogbl-citation2", official=False).eval(inputs)
    wanted = official_evaluator("ogbl-citation2").eval(inputs)
    assert ours.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(ours[key], wanted[key])


@pytest.mark.parametrize(
    ("name", "inputs", "text"),
    [
        (
            "ogbg-molhiv",
            {"y_pred_pos": 0, "y_pred_neg": 0},
            "scored by rocauc, which needs y_true and y_pred; got y_pred",
        ),
        (
            "ogbl-ddi",
            {"y_true": 0, "y_pred": 0},
            "scored by hits@20, which needs y_pred_pos and y_pred_neg; got y_true",
        ),
        (
            "ogbg-moltox21",
            {"y_true": np.zeros((3, 1)), "y_pred": np.zeros((3, 1))},
            r"must be \[rows, 12\], got \[3, 1\]",
        ),
        ("ogbl-citation2", {"y_pred_pos": np.zeros(3), "y_pred_neg": np.zeros(9)}, r"must be \[P\] and \[P, M\]"),
    ],
)
def test_a_wrong_metric_is_one_clear_error(name: str, inputs: Any, text: str):
    with pytest.raises(ArgumentError, match=text):
        Evaluator(name).eval(inputs)
