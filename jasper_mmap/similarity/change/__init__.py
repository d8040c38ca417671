"""What changed between two generations of negatives: slots, similarities, and the rows.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity.
"""
