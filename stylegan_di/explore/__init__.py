"""What is done with a trained generator: latents, projections, comparisons, videos."""
