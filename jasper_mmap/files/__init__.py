"""Bytes on disk and in memory: durable writes, locks, mappings. It knows no artifact.

May import: the ground.
"""
