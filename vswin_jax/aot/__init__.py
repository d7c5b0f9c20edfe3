"""The training step of a config compiled for machines that are not at hand: what it needs there.

Nothing is run: memory, operations and collectives are what the compiler says, times are estimates
that follow from them. `environment.prepare_environment` goes before any computation, then
`running.run`.
"""
