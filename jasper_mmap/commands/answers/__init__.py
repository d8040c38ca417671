"""What the commands print: tables and plain lines for people, and the same for programs.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
similarity/change, similarity/single, negatives, report/numbers, report, timing, dataset/device,
dataset, loader/passes, loader, bench, doctor.
"""
