"""The data sets by name."""

from __future__ import annotations

from graphattn.registry import Registry
from graphattn_datasets.catalog import CATALOG
from graphattn_datasets.images.catalog import IMAGE_CATALOG
from graphattn_datasets.images.segmentation.catalog import SEGMENTATION_CATALOG
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.ogb.catalog import OGB_CATALOG
from graphattn_datasets.text.catalog import TEXT_CATALOG

__all__ = ["DATASETS", "dataset_info", "list_datasets"]

# Names under which papers mean one of ours.
_ALIASES = {
    "zinc": "zinc_12k",
    "sbm_pattern": "pattern",
    "sbm_cluster": "cluster",
    "peptides": "peptides_func",
    "pcqm4m_v2": "pcqm4mv2",
}

DATASETS: Registry[DatasetInfo] = Registry("data set")
for _info in (*CATALOG, *IMAGE_CATALOG, *SEGMENTATION_CATALOG, *TEXT_CATALOG, *OGB_CATALOG):
    DATASETS.register(_info.name)(_info)


def list_datasets(task: str | None = None) -> list[str]:
    """Names of all data sets, sorted.

    Args:
        task: Only those of this task (``"node"``, ``"inductive_node"``, ``"graph_regression"``,
            ``"graph_classification"``, ``"image_classification"``, ``"segmentation"``,
            ``"language_modelling"``, ``"link"``).
    """
    return [name for name in DATASETS.names() if task is None or DATASETS.get(name).task == task]


def dataset_info(name: str) -> DatasetInfo:
    """Facts about a data set; case and ``-`` for ``_`` do not matter.

    Raises:
        ArgumentError: If there is none of that name; the text lists the names that come closest.
    """
    key = str(name).lower().replace("-", "_")
    return DATASETS.get(_ALIASES.get(key, key))
