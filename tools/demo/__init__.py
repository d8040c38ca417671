"""The demonstration: a synthetic folder is made, converted, trained on and evaluated.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
negatives, timing, dataset/device, dataset, loader/passes, loader, bench, converters, jasper_mmap.
"""
