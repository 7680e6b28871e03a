"""`python -m hf_mpruner` is `hf-mpruner`."""

import sys

from hf_mpruner.cli import main

if __name__ == "__main__":
    sys.exit(main())
