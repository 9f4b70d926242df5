"""The networks, as plain modules with the state-dict names and init kwargs of NVlabs' files."""
