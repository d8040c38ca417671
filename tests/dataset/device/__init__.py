"""Where the served tables are."""
