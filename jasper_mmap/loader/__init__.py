"""Epochs of batches, and a thread that watches for generations.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity, negatives,
timing, dataset/device, dataset, loader/passes.
"""

from .create import create_loader
from .loader import JASPERDataLoader

__all__ = ["JASPERDataLoader", "create_loader"]
