"""Neurons and attention heads: which go, by CKA, mutual information or weights."""
