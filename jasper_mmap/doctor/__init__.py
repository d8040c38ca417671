"""Whether this machine, and a store on it, are set up right: facts are gathered, then judged.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity, negatives,
timing, dataset/device, dataset, loader/passes, loader, bench.
"""
