"""What is compared, as changes of a configuration."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["BASELINE", "VARIANTS", "with_variant"]

BASELINE = "binary"
LONG = " + long range"
# Changes of graphattn.training.Segmentation and of graphattn.models.image.ConnNet; "cube" is the head of the
# configuration: connectivity, or instances where masks number their objects.
_HEADS: dict[str, dict[str, str]] = {
    BASELINE: {"head": "binary", "loss": "bce"},
    "connectivity": {"head": "cube", "loss": "bce"},
    "connectivity, bilateral losses": {"head": "cube", "loss": "biconnet"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{name}{LONG if long else ''}": {**head, "long_range": long}
    for long in (None, "non_local")
    for name, head in _HEADS.items()
}


def with_variant(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration with another head, loss or long range, and nothing else changed."""
    config, change = copy.deepcopy(config), VARIANTS[name]
    task = config["model"]["init_args"]
    network = task["model"]["init_args"]
    task["loss"] = change["loss"]
    network["long_range"] = change["long_range"]
    if change["head"] != "cube":
        network["head"] = change["head"]
    return config
