"""Models to files: one writer per format, int8, Core ML's NMS, metadata."""
