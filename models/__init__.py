"""Networks: blocks, YAML rows to a model, classifiers; in folders: weights files, runtimes, export."""
