"""Image ops, each registered with `torch.library`; see their modules."""
