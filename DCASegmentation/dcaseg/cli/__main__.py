"""``python -m dcaseg.cli`` is ``dca``, where the package is used without being installed."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
