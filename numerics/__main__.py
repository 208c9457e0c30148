"""``python -m numerics``: list the commands, or run one of them."""

from __future__ import annotations

from numerics.deferred import starting

with starting(__name__):
    from numerics.cli.program import main

if __name__ == "__main__":
    main(prog_name="python -m numerics")
