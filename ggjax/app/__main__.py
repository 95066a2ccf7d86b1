"""``python -m ggjax.app``, the same as the command ``ggjax``."""

import sys

from ggjax.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
