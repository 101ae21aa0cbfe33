"""Tests of first_llama.convert."""
