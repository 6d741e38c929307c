"""Collectives, and the rows that each process holds."""
