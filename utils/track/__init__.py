"""Identities of objects from frame to frame, counts at lines and in zones; what detect.py writes and draws of them."""
