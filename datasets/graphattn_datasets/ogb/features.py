"""OGB's atom and bond features: how many values each column can have."""

from __future__ import annotations

__all__ = ["ATOM_DIMS", "BOND_DIMS"]

# ogb.utils.features.get_atom_feature_dims: atomic number, chirality, degree, formal charge, hydrogens, radical
# electrons, hybridisation, aromatic, in a ring.
ATOM_DIMS: tuple[int, ...] = (119, 5, 12, 12, 10, 6, 6, 2, 2)
# ogb.utils.features.get_bond_feature_dims: type, stereo, conjugated.
BOND_DIMS: tuple[int, ...] = (5, 6, 2)
