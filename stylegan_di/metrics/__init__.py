"""Measures how good images are: statistics of features, the metrics on them, and the networks that extract them."""
