"""What mechanisms are made of. Mechanisms import these, and each other never."""
