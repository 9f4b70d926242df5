"""Networks that tell the samples of p from the student's, one kind a file."""
