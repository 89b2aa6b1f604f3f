"""Around the network: a ground floor that imports nothing of the project, and rooms. Never imports `models`."""
