"""Iterations over an order, in this process or by workers. It starts the workers.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity, negatives,
timing, dataset/device, dataset.
"""
