"""The ways to run one call of :func:`graphattn.attend`, one file each, and the table that picks one."""

from graphattn.backends.auto import BACKENDS, choose, choose_steps, named
from graphattn.backends.base import Backend, Call, Result

__all__ = ["BACKENDS", "Backend", "Call", "Result", "choose", "choose_steps", "named"]
