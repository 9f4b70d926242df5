"""Make the GAN you already have better with the diffusion model you already have, with no data."""
