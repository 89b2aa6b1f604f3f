"""How good detections are: matching, metrics, curves, timing."""
