"""Rows to tensors: encode, prove, cache, batch."""
