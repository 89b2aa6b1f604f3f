"""Data sets: from images and labels on disk to batches of tensors."""
