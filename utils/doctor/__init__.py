"""The doctor: checks of a data set, its page, and a repaired copy."""
