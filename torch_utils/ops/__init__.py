"""Image ops, each one schema registered with `torch.library`; see the module of each."""
