"""Extensions of PyTorch that do not depend on GANs or diffusion: ops, NVlabs' pickle format, distributed processes."""
