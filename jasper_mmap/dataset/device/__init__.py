"""Where served tables are: in the mapped files, or copied to a device.

May import: the ground, files, files/pt, rules, store.
"""
