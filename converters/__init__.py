"""From a builder's folder of `.pt` files to a store of safetensors files, and back.

Installed from a wheel as `jasper_converters`.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
negatives.
"""

from typing import TYPE_CHECKING

from jasper_mmap.lazy import lazy

if TYPE_CHECKING:
    from .conversion import convert
    from .conversion_report import ConversionReport
    from .export import export_pt
else:  # where type checkers do not look: they would take any name for one of these
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "ConversionReport": "conversion_report",
            "convert": "conversion",
            "export_pt": "export",
        },
    )

__all__ = ["ConversionReport", "convert", "export_pt"]
