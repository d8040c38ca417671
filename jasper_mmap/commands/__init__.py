"""The subcommands of `jasper-mmap`. Only they and their answers print.

May import: console, the ground, files, files/pt, rules, store, similarity/reports, similarity,
similarity/change, similarity/single, negatives, report/numbers, report, timing, dataset/device,
dataset, loader/passes, loader, bench, doctor, commands/answers.
"""
