"""Connectivity between pixels beside a mask, at the same budget."""
