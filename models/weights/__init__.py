"""Files to models: checkpoints, foreign weights, transfer."""
