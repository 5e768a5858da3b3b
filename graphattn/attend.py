# MOVED: use graphattn.attention (a submodule named like the function `graphattn.attend` would shadow it).
# This shim goes away today: import from graphattn.attention, edit graphattn/attention.py.
from graphattn.attention import *  # noqa: F403
