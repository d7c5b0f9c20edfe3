"""Arguments that shells must pass on as they are."""

ARGUMENTS = ("--config=c.py", "--workdir=my runs/a", "--config.model.num_heads=(1,1,2,2)")


QUOTED = "--config=c.py '--workdir=my runs/a' '--config.model.num_heads=(1,1,2,2)'"
