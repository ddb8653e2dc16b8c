"""Who generates: see `protocols.Sampler`."""
