"""Checking that a GGUF file works: what it says, whether it loads, and whether its outputs are the base's."""
