"""The command line's door: `python -m flownlib`."""

import sys

from flownlib.harness.cli import main

if __name__ == "__main__":
    sys.exit(main())
