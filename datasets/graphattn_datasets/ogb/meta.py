"""What OGB's ``master.csv`` files say about each data set (ogb 1.3.6), so that reading needs no ogb package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphattn.errors import ArgumentError

__all__ = ["OGB_SETS", "OgbMeta", "ogb_meta"]

_BASE = "http://snap.stanford.edu/ogb/data"


@dataclass(frozen=True)
class OgbMeta:
    """One column of ``master.csv``, or of PCQM4Mv2's loader.

    Args:
        name: OGB's name, ``"ogbg-molhiv"``.
        kind: What is predicted: a property of ``"graph"``, ``"node"`` or ``"link"``.
        metric: OGB's name of the metric: ``acc``, ``rocauc``, ``ap``, ``rmse``, ``mae``, ``F1``, ``mrr``,
            ``hits@K``.
        task: ``"binary"``, ``"multiclass"``, ``"regression"``, ``"subtoken"``, ``"link"`` or ``"kg"``.
        split: Name of the official split, a folder below ``split/``.
        num_tasks: Columns of the labels; 0 for links.
        num_classes: Classes of each label; 0 where there are none.
        inverse: The files hold each edge once; reading adds the reverse after it.
        node_feat, edge_feat: There are node or edge features.
        node_files, edge_files: Further fields of nodes or edges.
        hetero: Several types of nodes or edges.
        binary: npz files instead of csv.
        version: The release that this describes.
        archive: Name of the folder in the archive.
        url: Address of the archive.
    """

    name: str
    kind: Literal["graph", "node", "link"]
    metric: str
    task: Literal["binary", "multiclass", "regression", "subtoken", "link", "kg"]
    split: str
    archive: str
    url: str
    num_tasks: int = 0
    num_classes: int = 0
    inverse: bool = False
    node_feat: bool = False
    edge_feat: bool = False
    node_files: tuple[str, ...] = ()
    edge_files: tuple[str, ...] = ()
    hetero: bool = False
    binary: bool = False
    version: int = 1

    @property
    def folder(self) -> str:
        """The data set's folder in an OGB root."""
        return "pcqm4m-v2" if self.name == "pcqm4mv2" else self.name.replace("-", "_")

    @property
    def raw_files(self) -> tuple[str, ...]:
        """Files in ``raw/`` without which the set cannot be read."""
        if self.name == "pcqm4mv2":
            return ("data.csv.gz",)
        if self.binary:
            return ("data.npz",) if self.kind == "link" else ("data.npz", "node-label.npz")
        names = ["edge", "num-node-list", "num-edge-list"]
        names += ["node-feat"] * self.node_feat + ["edge-feat"] * self.edge_feat
        names += [*self.node_files, *self.edge_files]
        names += [] if self.kind == "link" else [f"{self.kind}-label"]
        return tuple(f"{name}.csv.gz" for name in names)


def _mol(short: str, archive: str, tasks: int, metric: str = "rocauc") -> OgbMeta:
    return OgbMeta(
        name=f"ogbg-mol{short}",
        kind="graph",
        metric=metric,
        task="regression" if metric == "rmse" else "binary",
        split="scaffold",
        archive=archive,
        url=f"{_BASE}/graphproppred/csv_mol_download/{archive}.zip",
        num_tasks=tasks,
        num_classes=0 if metric == "rmse" else 2,
        inverse=True,
        node_feat=True,
        edge_feat=True,
    )


def _other(kind: str, short: str, metric: str, task: str, split: str, archive: str, **facts: object) -> OgbMeta:
    values = {"num_tasks": 0 if kind == "link" else 1, **facts}
    url = f"{_BASE}/{kind}proppred/{archive}.zip"
    return OgbMeta(f"ogb{kind[0]}-{short}", kind, metric, task, split, archive, url, **values)  # type: ignore[arg-type]


_ALL = (
    _mol("bace", "bace", 1),
    _mol("bbbp", "bbbp", 1),
    _mol("clintox", "clintox", 2),
    _mol("muv", "muv", 17, "ap"),
    _mol("pcba", "pcba", 128, "ap"),
    _mol("sider", "sider", 27),
    _mol("tox21", "tox21", 12),
    _mol("toxcast", "toxcast", 617),
    _mol("hiv", "hiv", 1),
    _mol("chembl", "chembl", 1310),
    _mol("esol", "esol", 1, "rmse"),
    _mol("freesolv", "freesolv", 1, "rmse"),
    _mol("lipo", "lipophilicity", 1, "rmse"),
    _other(
        "graph", "ppa", "acc", "multiclass", "species", "ogbg_ppi_medium", num_classes=37, inverse=True, edge_feat=True
    ),
    _other(
        "graph",
        "code2",
        "F1",
        "subtoken",
        "project",
        "code2",
        node_feat=True,
        node_files=("node_is_attributed", "node_dfs_order", "node_depth"),
    ),
    OgbMeta(
        name="pcqm4mv2",
        kind="graph",
        metric="mae",
        task="regression",
        split="",
        archive="pcqm4m-v2",
        url="https://dgl-data.s3-accelerate.amazonaws.com/dataset/OGB-LSC/pcqm4m-v2.zip",
        num_tasks=1,
        node_feat=True,
        edge_feat=True,
    ),
    _other(
        "node",
        "proteins",
        "rocauc",
        "binary",
        "species",
        "proteins",
        num_tasks=112,
        num_classes=2,
        inverse=True,
        edge_feat=True,
        node_files=("node_species",),
    ),
    _other(
        "node",
        "products",
        "acc",
        "multiclass",
        "sales_ranking",
        "products",
        num_classes=47,
        inverse=True,
        node_feat=True,
    ),
    _other(
        "node",
        "arxiv",
        "acc",
        "multiclass",
        "time",
        "arxiv",
        num_classes=40,
        node_feat=True,
        node_files=("node_year",),
    ),
    _other(
        "node",
        "mag",
        "acc",
        "multiclass",
        "time",
        "mag",
        num_classes=349,
        node_feat=True,
        node_files=("node_year",),
        edge_files=("edge_reltype",),
        hetero=True,
        version=2,
    ),
    _other(
        "node",
        "papers100M",
        "acc",
        "multiclass",
        "time",
        "papers100M-bin",
        num_classes=172,
        node_feat=True,
        node_files=("node_year",),
        binary=True,
    ),
    _other("link", "ppa", "hits@100", "link", "throughput", "ppassoc", inverse=True, node_feat=True),
    _other(
        "link",
        "collab",
        "hits@50",
        "link",
        "time",
        "collab",
        inverse=True,
        node_feat=True,
        edge_files=("edge_weight", "edge_year"),
    ),
    _other("link", "citation2", "mrr", "link", "time", "citation-v2", node_feat=True, node_files=("node_year",)),
    _other("link", "wikikg2", "mrr", "kg", "time", "wikikg-v2", edge_files=("edge_reltype",)),
    _other("link", "ddi", "hits@20", "link", "target", "ddi", inverse=True),
    _other("link", "biokg", "mrr", "kg", "random", "biokg", edge_files=("edge_reltype",), hetero=True),
    _other("link", "vessel", "rocauc", "link", "spatial", "vessel", node_feat=True, edge_feat=True, binary=True),
)

OGB_SETS: dict[str, OgbMeta] = {_key.name: _key for _key in _ALL}


def ogb_meta(name: str) -> OgbMeta:
    """Facts about an OGB data set; case and ``_`` for ``-`` do not matter.

    Raises:
        ArgumentError: If OGB has none of that name.
    """
    key = str(name).lower().replace("_", "-")
    for meta in _ALL:
        if key in (meta.name.lower(), meta.folder.lower().replace("_", "-")):
            return meta
    raise ArgumentError(f"name must be a data set of OGB, got {name!r}; known: {', '.join(OGB_SETS)}")
