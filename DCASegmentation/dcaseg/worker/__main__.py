"""``python -m dcaseg.worker``: runs the worker (see ``worker.protocol``)."""

from __future__ import annotations

import faulthandler
import os
from contextlib import suppress

from .server import Channel, Service


def main() -> None:
    """Serve the process that started this one."""
    # If a library crashes, the traceback then goes to standard error, which the panel shows.
    faulthandler.enable()
    if os.name == "posix":
        # A process group of its own: ending the group ends this process and everything its libraries start.
        with suppress(PermissionError):
            os.setsid()
    Service(Channel()).serve()


if __name__ == "__main__":
    main()
