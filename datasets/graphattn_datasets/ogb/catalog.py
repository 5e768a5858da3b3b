"""What is known about OGB's data sets, with published results to compare with."""

from __future__ import annotations

from typing import Any

from graphattn_datasets.info import Anchor, DatasetInfo
from graphattn_datasets.ogb.features import ATOM_DIMS, BOND_DIMS
from graphattn_datasets.ogb.meta import OGB_SETS

__all__ = ["OGB_CATALOG"]

# Read in stored copies of the pages, 2020 to 2023.
_BOARD = "OGB leaderboard, ogb.stanford.edu/docs/leader_graphprop"
_PAPER = "Hu et al. 2020, arXiv 2005.00687"
_LSC = "Hu et al. 2021, arXiv 2103.09430, and its leaderboard for v2"
_GPS = "Rampasek et al. 2022, arXiv 2205.12454"
_SAN = "Kreuzer et al. 2021, arXiv 2106.03893"
_METRICS: dict[str, Any] = {
    "acc": "accuracy",
    "rocauc": "roc_auc",
    "ap": "average_precision",
    "rmse": "rmse",
    "mae": "mae",
    "mrr": "mrr",
}


def _paper(*rows: tuple[str, float, float | None]) -> tuple[Anchor, ...]:
    return tuple(Anchor(model, value, spread, _PAPER, False) for model, value, spread in rows)


def _board(kind: str, *rows: tuple[str, float, float]) -> tuple[Anchor, ...]:
    source = _BOARD.replace("graphprop", f"{kind}prop")
    return tuple(Anchor(model, value, spread, source, True) for model, value, spread in rows)


def _info(name: str, size: str, licence: str, channels: int | None = None, anchors: tuple[Anchor, ...] = ()) -> Any:
    meta = OGB_SETS[name]
    molecules = meta.node_feat and meta.edge_feat and meta.kind == "graph"
    tasks: dict[str, Any] = {"graph": "graph_classification", "node": "node", "link": "link"}
    return DatasetInfo(
        name=name.lower().replace("-", "_"),
        loader="graphattn_datasets.ogb.dataset:make",
        task="graph_regression" if meta.task == "regression" else tasks[meta.kind],
        metric=_METRICS.get(meta.metric, meta.metric),
        splits={"graph": "indices", "node": "masks", "link": "edges"}[meta.kind],  # type: ignore[arg-type]
        size=size,
        source=meta.url,
        licence=licence,
        exactness="OGB's own files and split"
        + ("; test labels are hidden, the test set here is the validation set" if name == "pcqm4mv2" else ""),
        data_path=f"ogb/{meta.folder}",
        num_classes=meta.num_classes if meta.task == "multiclass" else None,
        num_targets=meta.num_tasks if meta.task in ("binary", "regression") else None,
        multilabel=meta.task == "binary",
        node_vocab=ATOM_DIMS if molecules else None,
        node_channels=channels,
        edge_vocab=BOND_DIMS if molecules else None,
        anchors=anchors,
    )


def _mol(name: str, size: str, *rows: tuple[str, float, float | None]) -> Any:
    return _info(f"ogbg-mol{name}", size, "MIT", anchors=_paper(*rows))


OGB_CATALOG: tuple[DatasetInfo, ...] = (
    _info(
        "ogbg-molhiv",
        "32,901 / 4,113 / 4,113 molecules",
        "MIT",
        anchors=(
            Anchor("GCN", 76.06, 0.97, _BOARD, True),
            Anchor("GIN", 75.58, 1.40, _BOARD, True),
            Anchor("GCN+virtual node", 75.99, 1.19, _BOARD, True),
            Anchor("GIN+virtual node", 77.07, 1.49, _BOARD, True),
            Anchor("PNA", 79.05, 1.32, _BOARD, True),
            Anchor("Graphormer (pretrained)", 80.51, 0.53, _BOARD, True),
            Anchor("Morgan fingerprints + random forest", 80.60, 0.10, _BOARD, True),
            Anchor("SAN", 77.85, 2.47, _SAN, False),
            Anchor("GPS", 78.80, 1.01, _GPS, False),
        ),
    ),
    _mol("bace", "1,210 / 151 / 152 molecules", ("GCN", 79.15, None), ("GIN", 72.97, None)),
    _mol(
        "tox21",
        "6,264 / 783 / 784 molecules",
        ("GCN", 75.29, None),
        ("GIN", 74.91, None),
        ("GCN+virtual node", 77.46, None),
    ),
    _mol(
        "esol",
        "902 / 113 / 113 molecules",
        ("GCN", 1.114, None),
        ("GIN", 1.173, None),
        ("GIN+virtual node", 0.998, None),
    ),
    _mol(
        "freesolv",
        "513 / 64 / 65 molecules",
        ("GCN", 2.640, None),
        ("GIN", 2.755, None),
        ("GIN+virtual node", 2.151, None),
    ),
    _mol(
        "lipo",
        "3,360 / 420 / 420 molecules",
        ("GCN", 0.797, None),
        ("GIN", 0.757, None),
        ("GIN+virtual node", 0.704, None),
    ),
    _mol("bbbp", "2,039 molecules"),
    _mol("clintox", "1,477 molecules"),
    _mol("muv", "93,087 molecules"),
    _mol("sider", "1,427 molecules"),
    _mol("toxcast", "8,576 molecules"),
    _mol("chembl", "456,331 molecules"),
    _info(
        "ogbg-molpcba",
        "437,929 molecules, 128 labels",
        "MIT",
        anchors=(
            *_board(
                "graph",
                ("GCN", 0.2020, 0.0024),
                ("GIN", 0.2266, 0.0028),
                ("GCN+virtual node", 0.2424, 0.0034),
                ("GIN+virtual node", 0.2703, 0.0023),
            ),
            Anchor("SAN", 0.2765, 0.0042, _SAN, False),
            Anchor("GPS", 0.2907, 0.0028, _GPS, False),
        ),
    ),
    _info(
        "ogbg-ppa",
        "158,100 graphs, 243 nodes",
        "CC0",
        anchors=(
            *_board(
                "graph",
                ("GCN", 68.39, 0.84),
                ("GIN", 68.92, 1.00),
                ("GCN+virtual node", 68.57, 0.61),
                ("GIN+virtual node", 70.37, 1.07),
            ),
            Anchor("GPS", 80.15, 0.33, _GPS, False),
        ),
    ),
    _info(
        "pcqm4mv2",
        "3,378,606 / 73,545 molecules, labels of 294,469 hidden",
        "CC BY 4.0",
        anchors=(
            Anchor("GCN", 0.1379, None, f"{_LSC}, validation", False),
            Anchor("GIN", 0.1195, None, f"{_LSC}, validation", False),
            Anchor("GIN+virtual node", 0.1083, None, f"{_LSC}, validation", False),
            Anchor("GPS-medium", 0.0858, None, f"{_GPS}, validation", False),
        ),
    ),
    _info(
        "ogbn-arxiv",
        "169,343 nodes, 1,166,243 citations",
        "ODC-BY",
        128,
        _board(
            "node", ("MLP", 55.50, 0.23), ("node2vec", 70.07, 0.13), ("GCN", 71.74, 0.29), ("GraphSAGE", 71.49, 0.27)
        ),
    ),
    _info(
        "ogbn-products",
        "2,449,029 nodes, 61,859,140 edges",
        "Amazon",
        100,
        _board(
            "node",
            ("MLP", 61.06, 0.08),
            ("GCN", 75.64, 0.21),
            ("GraphSAGE", 78.50, 0.14),
            ("GraphSAGE, NeighborSampling", 78.70, 0.36),
            ("ClusterGCN", 78.97, 0.33),
            ("GraphSAINT", 79.08, 0.24),
        ),
    ),
    _info(
        "ogbn-proteins",
        "132,534 nodes, 39,561,252 edges",
        "CC0",
        anchors=_board("node", ("MLP", 72.04, 0.48), ("GCN", 72.51, 0.35), ("GraphSAGE", 77.68, 0.20)),
    ),
    _info("ogbn-papers100M", "111,059,956 nodes, 1,615,685,872 citations", "ODC-BY", 128),
    _info(
        "ogbl-ddi",
        "4,267 nodes, 1,067,911 / 133,489 / 133,489 edges",
        "CC0",
        anchors=_board("link", ("node2vec", 23.26, 2.09), ("GCN", 37.07, 5.07), ("GraphSAGE", 53.90, 4.74)),
    ),
    _info(
        "ogbl-collab",
        "235,868 nodes, 1,285,465 edges",
        "ODC-BY",
        128,
        _board("link", ("node2vec", 48.88, 0.54), ("GCN", 44.75, 1.07), ("GraphSAGE", 48.10, 0.81)),
    ),
    _info(
        "ogbl-ppa",
        "576,289 nodes, 30,326,273 edges",
        "CC0",
        58,
        _board("link", ("node2vec", 22.26, 0.83), ("GCN", 18.67, 1.32), ("GraphSAGE", 16.55, 2.40)),
    ),
    _info(
        "ogbl-citation2",
        "2,927,963 nodes, 30,561,187 citations",
        "ODC-BY",
        128,
        _board("link", ("GCN", 84.74, 0.21), ("GraphSAGE", 82.60, 0.36), ("GraphSAGE, NeighborSampling", 80.44, 0.10)),
    ),
    _info("ogbl-vessel", "3,538,495 nodes, 5,345,897 edges", "CC BY-NC 4.0", 3),
)
