"""The attentions that are compared, as changes of a configuration."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any

from graphattn.errors import ConfigError

__all__ = ["BASELINES", "IMAGE_VARIANTS", "NODE_VARIANTS", "check_network", "variants_of", "with_variant"]

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


def check_network(config: dict[str, Any], name: str) -> None:
    """Say what a configuration lacks for a comparison, before anything is run.

    Args:
        config: The configuration.
        name: Of its file, for the error.

    Raises:
        ConfigError: If it has no network, or the network has not the options that the variants change.
    """
    try:
        path = config["model"]["init_args"]["model"]["class_path"]
        config["model"]["init_args"]["model"]["init_args"]
        module, _, attribute = path.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{name}: a network with class_path and init_args is needed under model.init_args") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: the network {path} cannot be imported: {error}") from error
    changed = {key for variant in variants_of(config).values() for key in variant}
    missing = sorted(changed - set(parameters))
    if missing and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        raise ConfigError(
            f"{name}: the attention of {path} cannot be exchanged, it has no option {', '.join(map(repr, missing))}; "
            "take a configuration of experiments/infsa"
        )


def with_variant(config: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """The configuration with another attention and nothing else changed."""
    config = copy.deepcopy(config)
    config["model"]["init_args"]["model"]["init_args"].update(copy.deepcopy(variant))
    return config
