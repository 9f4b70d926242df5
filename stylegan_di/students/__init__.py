"""Generators that a teacher instructs, one kind a file."""
