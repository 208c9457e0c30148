"""``python -m numerics.neurons``: bounds, margins and experiments on how many neurons soft and hard labels need."""

from __future__ import annotations

from numerics.deferred import starting

with starting(__name__):
    from numerics.cli.neurons import neurons_command

if __name__ == "__main__":
    neurons_command(prog_name="python -m numerics.neurons")
