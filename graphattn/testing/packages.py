"""Optional packages that tests ask for."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

__all__ = ["module_name", "require_or_skip", "required_packages"]

# The extras by the module that each is about; other names stand for themselves.
_MODULES = {
    "pyg": "torch_geometric",
    "hf": "transformers",
    "nx": "networkx",
    "train": "lightning",
    "scatter": "torch_scatter",
}


def required_packages() -> set[str]:
    """The names listed in the environment variable ``GRAPHATTN_REQUIRE`` (``"pyg,dgl"``, say).

    A test may not be skipped for want of one of these.
    """
    return {name.strip() for name in os.environ.get("GRAPHATTN_REQUIRE", "").split(",") if name.strip()}


def module_name(name: str) -> str:
    """The module behind the name of an extra: ``"pyg"`` -> ``"torch_geometric"``."""
    return _MODULES.get(name, name)


def require_or_skip(name: str) -> ModuleType:
    """Import an optional package for a test, or skip the test; fail where ``GRAPHATTN_REQUIRE`` lists it.

    Args:
        name: An extra (``"pyg"``, ``"hf"``, ``"nx"``, ``"train"``, ``"scatter"``) or the name of a module.

    Returns:
        The module.
    """
    import pytest

    module = module_name(name)
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken package raises anything: OSError, AttributeError, ...
        reason = f"{module} cannot be imported ({type(error).__name__}: {error})"
    if required_packages() & {name, module}:
        pytest.fail(f"{reason}, and GRAPHATTN_REQUIRE lists it", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
