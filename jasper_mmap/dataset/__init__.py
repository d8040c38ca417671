"""One split, served in this process. It starts no process and no thread.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity, negatives,
timing, dataset/device.
"""

from .dataset import JASPERSteeringDataset

__all__ = ["JASPERSteeringDataset"]
