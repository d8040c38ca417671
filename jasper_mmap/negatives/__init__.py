"""Generations of hard negatives: the only room that makes and replaces them.

May import: the ground, files, files/pt, rules, store, similarity/reports, similarity.
"""
