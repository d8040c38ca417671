"""The results of a lint: their form, as JSON, in a few numbers, and kept beside a store.

May import: the ground, files, files/pt, rules, store.
"""
