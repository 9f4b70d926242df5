"""Reports of a run: statistics of its steps, pictures and tables, sent to a list of sinks."""
