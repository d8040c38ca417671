"""Which generation is served, and who is in the know."""
