"""``python -m prunetaylor`` is the command ``prunetaylor``."""

import os
import sys

# Python puts the working directory first. It is removed before the next import, so that no click.py there is run.
if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from prunetaylor.cli.main import main

if __name__ == "__main__":  # processes that are spawned import this module again
    main()
