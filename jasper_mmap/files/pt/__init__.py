"""Reads what torch saved, and runs nothing of it.

May import: the ground, files.
"""
