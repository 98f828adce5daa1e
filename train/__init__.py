"""Making the network: data, generator, loop, evaluation. PyTorch."""
