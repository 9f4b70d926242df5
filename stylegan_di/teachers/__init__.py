"""Denoisers that a student learns from, and that a fake score starts from, one kind a file."""
