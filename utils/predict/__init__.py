"""From a source to written results: frames, the predictor, writers."""
