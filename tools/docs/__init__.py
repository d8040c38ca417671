"""The API reference: web pages built from the docstrings of the public interface.

May import: console, the ground.
"""
