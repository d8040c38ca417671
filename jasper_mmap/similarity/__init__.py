"""How near questions, right sources and negatives are to each other, and what that says.

May import: the ground, files, files/pt, rules, store, similarity/reports.
"""
