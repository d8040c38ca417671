"""Continuing an interrupted run."""
