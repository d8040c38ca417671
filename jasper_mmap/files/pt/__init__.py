"""Reads files that torch saved, without running anything in them.

May import: the ground, files.
"""
