"""One pair, question or source of a store, with its similarities in float64.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity.
"""
