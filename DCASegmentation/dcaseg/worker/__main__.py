"""``python -m dcaseg.worker``: see ``worker.protocol``."""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress

from .server import Channel, Service


def main() -> None:
    """Serve whoever started this process."""
    # A crash in a library then leaves its place on the standard error, which the panel shows.
    faulthandler.enable()
    if os.name == "posix":
        # A group of its own: ending the group ends this process and all that its libraries start, and nothing else.
        with suppress(PermissionError):
            os.setsid()
    Service(Channel()).serve()


if __name__ == "__main__":
    main()
