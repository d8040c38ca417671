"""The benchmark of this package against other loaders, and against the floor.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
negatives, timing, dataset/device, dataset, loader/passes, loader, bench, converters, jasper_mmap.
"""
