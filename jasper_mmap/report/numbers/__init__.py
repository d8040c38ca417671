"""The numbers of a report, gathered from the lint and the store.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity, negatives.
"""
