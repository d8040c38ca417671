"""Our loader inside the tools that people train with: what every rank receives, as a matrix.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
negatives, timing, dataset/device, dataset, loader/passes, loader, bench, converters, jasper_mmap,
tools/bench.
"""
