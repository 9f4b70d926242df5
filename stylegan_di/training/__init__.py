"""The three trainings: a denoiser (edm), a GAN (gan), Diff-Instruct (di)."""
