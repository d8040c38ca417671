"""Programs run from a checkout as `python -m tools.NAME`; nothing here is installed.

May import: console, the ground, files, files/pt, rules, store, negatives, dataset, loader, bench,
commands, converters, jasper_mmap.
"""
