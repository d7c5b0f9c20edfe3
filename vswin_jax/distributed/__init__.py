"""Multi-process runs: cluster detection, startup barrier, consistency checks, joint exit."""
