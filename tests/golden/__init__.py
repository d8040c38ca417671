"""Stores that released versions made; every later version serves the same bits from them."""
