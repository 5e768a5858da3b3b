"""Infinite self-attention beside softmax, over the number of tokens."""
