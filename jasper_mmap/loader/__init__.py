"""Epochs of batches, and a thread that watches for generations.

May import: the ground, files, files/pt, rules, store, negatives, dataset, loader/passes.
"""

from .loader import JASPERDataLoader, create_loader

__all__ = ["JASPERDataLoader", "create_loader"]
