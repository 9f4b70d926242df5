"""Images from a diffusion model, and images by seed."""
