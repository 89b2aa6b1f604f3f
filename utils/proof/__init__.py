"""An exported file against PyTorch: images, parity, the table, the web page."""
