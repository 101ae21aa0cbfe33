"""Tests of first-llama; the folders mirror the package."""
