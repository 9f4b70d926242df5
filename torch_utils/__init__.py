"""What the project adds to PyTorch: ops, NVlabs' pickle format, processes. Knows nothing of GANs or diffusion."""
