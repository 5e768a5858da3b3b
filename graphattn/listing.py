"""What there is to choose from, by name."""

from __future__ import annotations

__all__ = ["list_backends", "list_datasets", "list_mechanisms", "list_models"]


def list_mechanisms() -> list[str]:
    """Names of all mechanisms, for the ``mechanism`` argument of models."""
    from graphattn.mechanisms import MECHANISMS

    return MECHANISMS.names()


def list_models() -> list[str]:
    """Names of all models, for :func:`graphattn.create_model`."""
    from graphattn.models import MODELS

    return MODELS.names()


def list_datasets() -> list[str]:
    """Names of all data sets, for ``graphattn_datasets.load_dataset``."""
    from graphattn_datasets import list_datasets as names

    return names()


def list_backends() -> dict[str, str | None]:
    """Each backend with the reason why it cannot run on this machine, or ``None`` where it can."""
    from graphattn.backends import BACKENDS

    return {name: backend.missing() for name, backend in BACKENDS.items()}
