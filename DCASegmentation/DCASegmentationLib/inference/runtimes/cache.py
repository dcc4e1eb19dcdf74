"""The folder where what can be made again is kept from run to run. It may be deleted at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ...home import expanded, home_or_temporary

VARIABLE = "DCA_CACHE"


def cache_folder() -> Path:
    """The folder that DCA_CACHE names, else ``dca`` in the user's cache folder of this system; it may not exist."""
    if named := os.environ.get(VARIABLE):
        return expanded(named)
    home = home_or_temporary()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "dca"
