"""Run ``dca`` as ``python -m dcaseg.cli``, for example from a source tree that is not installed."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
