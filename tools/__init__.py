"""Programs run from a checkout as `python -m tools.NAME`; nothing here is installed.

May import: the ground.
"""
