"""Lightning data modules over :func:`graphattn_datasets.load_dataset`, with an order that survives resumption."""

from graphattn.training.data.clusters import ClusterDataModule
from graphattn.training.data.graphs import GraphDataModule
from graphattn.training.data.images import ImageDataModule
from graphattn.training.data.links import LinkDataModule
from graphattn.training.data.neighborhoods import NeighborDataModule
from graphattn.training.data.nodes import NodeDataModule
from graphattn.training.data.order import EpochSampler
from graphattn.training.data.prompts import PromptDataModule
from graphattn.training.data.segmentation import SegmentationDataModule
from graphattn.training.data.text import TextDataModule

__all__ = [
    "ClusterDataModule",
    "EpochSampler",
    "GraphDataModule",
    "ImageDataModule",
    "LinkDataModule",
    "NeighborDataModule",
    "NodeDataModule",
    "PromptDataModule",
    "SegmentationDataModule",
    "TextDataModule",
]
