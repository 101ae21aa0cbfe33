"""Tests of first_llama.verify."""
