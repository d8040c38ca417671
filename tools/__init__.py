"""Programs that are run from a checkout as `python -m tools.NAME` and not installed.

May import: the ground.
"""
