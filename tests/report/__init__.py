"""The report of a store as one page."""
