"""Data sets of images: files in a folder or zip, labels in dataset.json, batches in a stateless order, augmentation."""
