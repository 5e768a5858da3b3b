"""Each example with PyG's layers and with ours, side by side: what ``compare.py`` runs."""
