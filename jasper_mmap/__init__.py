"""Memory-mapped safetensors datasets for training on pre-computed embeddings."""

from .dataset.dataset import JASPERSteeringDataset
from .loader.epochs import set_epoch
from .loader.first_batch import validate_first_batch
from .loader.loader import create_loader
from .loader.watcher import watch_negatives
from .negatives.publish import publish_negatives, rollback_negatives

__all__ = [
    "JASPERSteeringDataset",
    "create_loader",
    "publish_negatives",
    "rollback_negatives",
    "set_epoch",
    "validate_first_batch",
    "watch_negatives",
]
