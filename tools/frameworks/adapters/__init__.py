"""Trainings in the tools, a file each; importing one imports its tool.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
negatives, timing, dataset/device, dataset, loader/passes, loader, bench, converters, jasper_mmap,
tools/bench, tools/frameworks.
"""
