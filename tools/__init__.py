"""Scripts beside the three main ones."""
