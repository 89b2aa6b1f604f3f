"""Everything around the network: data, loss, metrics, optimisation, files. Never imports `models`."""
