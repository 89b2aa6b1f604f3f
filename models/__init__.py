"""Networks: blocks, the YAML parser, the detection model, checkpoints. Never imports `utils`."""
