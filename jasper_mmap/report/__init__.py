"""One page of pictures of a store: what it is, and what is worth mending in it.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity, negatives,
report/numbers.
"""
