"""The API reference: web pages made from the docstrings of the public interface.

May import: console, the ground.
"""
