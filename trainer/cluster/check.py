"""``python -m trainer.cluster.check INVENTORY``: the launcher's own rules for an inventory, for the playbooks."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.cluster.inventory import load_inventory
from trainer.errors import EXIT_OK, InputError


def main(arguments: list[str]) -> int:
    """Print what is wrong with an inventory on standard error; returns 0, or 2 if anything is."""
    try:
        load_inventory(Path(arguments[0]))
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
