"""Uses of a trained generator: latents, projections, comparisons, videos."""
