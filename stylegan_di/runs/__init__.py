"""A run's folder, training states, processes, resumption and endings."""
