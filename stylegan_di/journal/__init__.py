"""What a run reports: statistics of its steps, pictures and tables, to a list of sinks."""
