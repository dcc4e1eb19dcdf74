"""Download of a model in a separate process: ``python -m dcaseg.worker.model_download ADDRESS``.

It reports the events of ``worker.protocol`` on standard output (progress, then nothing more or an error), and exits
with code 0 when the model is installed. The module uses a separate process because Python's threads stand still while
Slicer's event loop waits.
"""

from __future__ import annotations

import os
import sys
import threading

from ..errors import UserError
from ..models.download import Source, download_bundle
from ..models.store import own_models
from .protocol import Failure, Progress, encode

RUN = "download"
"""The ``id`` of all events."""


def main(address: str) -> int:
    """Download and report events to the calling process; returns the exit code. Ends when standard input ends."""
    threading.Thread(target=_end_with_input, daemon=True).start()

    def send(event: Progress | Failure) -> None:
        sys.stdout.buffer.write(encode(event))
        sys.stdout.buffer.flush()

    try:
        download_bundle(Source.parse(address), own_models(), lambda *report: send(Progress(RUN, *report)))
    except UserError as error:
        send(Failure(RUN, error.problem, error.remedy))
        return 1
    return 0


def _end_with_input() -> None:
    # The process that started this one may have used a launcher, and can end only the launcher directly.
    sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
