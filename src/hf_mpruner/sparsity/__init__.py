"""Weights set to zero, by Wanda or magnitude, unstructured or 2:4."""
