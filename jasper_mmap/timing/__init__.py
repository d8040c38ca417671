"""What a pass measures of its batches, and what that says about a training.

May import: the ground.
"""
