"""Memory-mapped safetensors datasets for training on pre-computed embeddings."""

from .dataset import JASPERSteeringDataset
from .epochs import set_epoch
from .first_batch import validate_first_batch
from .loader import create_loader
from .publish import publish_negatives, rollback_negatives
from .watcher import watch_negatives

__all__ = [
    "JASPERSteeringDataset",
    "create_loader",
    "publish_negatives",
    "rollback_negatives",
    "set_epoch",
    "validate_first_batch",
    "watch_negatives",
]
