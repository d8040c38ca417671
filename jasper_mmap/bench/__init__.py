"""How fast the batches of a store come. It starts processes too.

May import: the ground, files, files/pt, rules, store, negatives, dataset, loader.
"""
