"""Who turns a batch into an update: see `protocols.Trainer`."""
