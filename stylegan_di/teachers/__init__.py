"""Denoisers that a student learns from."""
