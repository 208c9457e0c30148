"""``python -m numerics.anatomy``: why the student of one point of theory is as good as it is."""

from numerics.deferred import importing, starting

with importing(), starting(__name__):
    from numerics.cli.anatomy import anatomy_command as main

if __name__ == "__main__":
    main(prog_name="python -m numerics.anatomy")
