"""Evaluation: detections against ground truth, as metrics and charts."""
