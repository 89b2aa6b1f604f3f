"""Exported files compared with PyTorch: images, parity, the table, the web page."""
