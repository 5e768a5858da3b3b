"""The attentions that are compared, as changes of a configuration."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["BASELINES", "IMAGE_VARIANTS", "NODE_VARIANTS", "variants_of", "with_variant"]

# attention and attention_options of graphattn.models.image.VisionTransformer
IMAGE_VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {"attention": "softmax"},
    "infsa-1-hop": {"attention": "infsa", "attention_options": {"hops": 1}},
    "infsa-3-hops": {"attention": "infsa", "attention_options": {"hops": 3}},
    "linear-infsa": {"attention": "linear_infsa"},
}
# mechanism and mechanism_options of graphattn.models.graph.GraphTransformer. The Frobenius norm of a whole graph makes
# InfSA's output small, so it is rescaled by the root of the number of nodes here.
NODE_VARIANTS: dict[str, dict[str, Any]] = {
    "graph-transformer": {"mechanism": "graph_transformer"},
    "pagerank": {
        "mechanism": "graph_transformer",
        "mechanism_options": {"propagator": "pagerank", "propagator_options": {"alpha": 0.15}},
    },
    "infsa-1-hop": {"mechanism": "infsa", "mechanism_options": {"hops": 1, "rescale": True}},
    "infsa-3-hops": {"mechanism": "infsa", "mechanism_options": {"hops": 3, "rescale": True}},
}
BASELINES = ("softmax", "graph-transformer")


def variants_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants that a configuration's network can have, the baseline first."""
    network = config["model"]["init_args"]["model"]["class_path"]
    return IMAGE_VARIANTS if network.endswith("VisionTransformer") else NODE_VARIANTS


def with_variant(config: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """The configuration with another attention and nothing else changed."""
    config = copy.deepcopy(config)
    config["model"]["init_args"]["model"]["init_args"].update(copy.deepcopy(variant))
    return config
