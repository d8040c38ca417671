"""The throughput of a store's batches, measured. It starts processes too.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity, negatives,
timing, dataset/device, dataset, loader/passes, loader.
"""
