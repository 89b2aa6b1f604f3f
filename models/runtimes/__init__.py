"""Files to detections: one backend per file format, ensembles, test-time augmentation."""
