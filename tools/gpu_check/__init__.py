"""The check of the device path on a machine with a GPU.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
negatives, timing, dataset/device, dataset, loader/passes, loader, bench, converters, jasper_mmap,
tools/bench.
"""
