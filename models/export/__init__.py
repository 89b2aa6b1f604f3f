"""Models to files: one writer per format, int8, metadata, inspection."""
