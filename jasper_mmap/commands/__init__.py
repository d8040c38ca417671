"""What `jasper-mmap` does. Of this package only this room prints.

May import: console, the ground, files, files/pt, rules, store, negatives, dataset, loader, bench.
"""
