"""Documents made from the code: the API reference, and pictures of a report.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
negatives, report/numbers, report.
"""
