"""InfSA beside softmax attention, at the same budget."""
