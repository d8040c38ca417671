"""From a builder's folder of `.pt` files to a store of safetensors files, and back.

Installed from a wheel as `jasper_converters`.

May import: console, the ground, files, files/pt, rules, store, negatives.
"""

from .conversion import convert
from .export import export_pt
from .report import ConversionReport

__all__ = ["ConversionReport", "convert", "export_pt"]
