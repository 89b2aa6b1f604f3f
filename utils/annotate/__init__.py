"""Annotation tools: pre-annotations that they import, and their exports, read back as a data set in YOLO format."""
