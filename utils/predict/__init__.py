"""Prediction: from a source of frames through the predictor to results and written files."""
