"""What a dataset is: tables of artifacts and columns, and pure functions.

May import: the ground.
"""
