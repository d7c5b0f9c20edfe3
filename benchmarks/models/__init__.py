"""Benchmark of the models against PyTorch, see `__main__`."""
