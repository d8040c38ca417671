"""Memory-mapped safetensors datasets for training on pre-computed embeddings."""

from typing import TYPE_CHECKING

from .lazy import lazy

if TYPE_CHECKING:
    from . import errors as errors
    from .dataset.dataset import JASPERSteeringDataset
    from .loader.create import create_loader
    from .loader.epochs import set_epoch
    from .loader.first_batch import validate_first_batch
    from .loader.loader import JASPERDataLoader
    from .loader.stats import stats
    from .loader.watcher import watch_negatives
    from .negatives.lint import lint_negatives
    from .negatives.publish import publish_negatives
    from .negatives.rollback import rollback_negatives
    from .rules.schema import Batch
    from .timing.loader_stats import LoaderStats
    from .version import __version__ as __version__
else:  # where type checkers do not look: they would take any name for one of these
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "Batch": "rules.schema",
            "JASPERDataLoader": "loader.loader",
            "JASPERSteeringDataset": "dataset.dataset",
            "LoaderStats": "timing.loader_stats",
            "__version__": "version",
            "create_loader": "loader.create",
            "errors": "errors",
            "lint_negatives": "negatives.lint",
            "publish_negatives": "negatives.publish",
            "rollback_negatives": "negatives.rollback",
            "set_epoch": "loader.epochs",
            "stats": "loader.stats",
            "validate_first_batch": "loader.first_batch",
            "watch_negatives": "loader.watcher",
        },
    )

__all__ = [
    "Batch",
    "JASPERDataLoader",
    "JASPERSteeringDataset",
    "LoaderStats",
    "create_loader",
    "lint_negatives",
    "publish_negatives",
    "rollback_negatives",
    "set_epoch",
    "stats",
    "validate_first_batch",
    "watch_negatives",
]
