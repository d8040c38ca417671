"""A converted folder: what it holds, and whether it is sound.

May import: the ground, files, files/pt, rules.
"""
