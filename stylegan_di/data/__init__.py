"""Image data sets: reading folders and zips with their labels, batches in a reproducible order, and augmentation."""
