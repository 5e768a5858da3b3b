"""Segmentation as connectivity between pixels (Kampffmeyer et al., "ConnNet", arXiv 1804.07836, IEEE TIP 2019).

A connectivity cube ``[..., K, H, W]`` holds, for each pixel and each of its K = 8 (or 4) neighbours, how sure the pixel
is that both belong to the same thing. It is a score on the edges of ``patterns.grid(H, W, neighbours=8)``; pixels are
salient, and joined to instances, where both ends of an edge agree. The body of the paper could not be read; what is
taken from its successors BiconNet (2022) and DconnNet (2023) says so.
"""

from graphattn.mechanisms.connectivity.cube import (
    class_labels,
    connectivity_labels,
    cube_to_edges,
    edges_to_cube,
    instance_labels,
    neighbours_of,
    pair_logits,
)
from graphattn.mechanisms.connectivity.losses import ConnectivityLoss, dice_loss, edge_loss
from graphattn.mechanisms.connectivity.mechanism import Connectivity
from graphattn.mechanisms.connectivity.vote import (
    Instances,
    agreed_edges,
    agreed_mask,
    bilateral_vote,
    components,
    connected_components,
    instances,
    label_propagation,
    mutual_agreement,
    pair_votes,
)

__all__ = [
    "Connectivity",
    "ConnectivityLoss",
    "Instances",
    "agreed_edges",
    "agreed_mask",
    "bilateral_vote",
    "class_labels",
    "components",
    "connected_components",
    "connectivity_labels",
    "cube_to_edges",
    "dice_loss",
    "edge_loss",
    "edges_to_cube",
    "instance_labels",
    "instances",
    "label_propagation",
    "mutual_agreement",
    "neighbours_of",
    "pair_logits",
    "pair_votes",
]
