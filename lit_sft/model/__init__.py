"""Tensors to gradients: load, attach, loss, optimizer."""
