"""Memory-mapped safetensors datasets for training on pre-computed embeddings."""

from .dataset import JASPERSteeringDataset
from .loader import create_loader, set_epoch

__all__ = ["JASPERSteeringDataset", "create_loader", "set_epoch"]
