"""Scripts that complement the three main ones."""
