"""Data set YAMLs, hyperparameters, sample images, and the generator of the built-in data set."""
