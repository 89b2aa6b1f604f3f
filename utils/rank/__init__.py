"""Which images to label next: how uncertain a detector is about them, how different they are, the contact sheet."""
