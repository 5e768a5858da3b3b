"""Leaves that speak to one other library each; nothing in graphattn imports them."""
