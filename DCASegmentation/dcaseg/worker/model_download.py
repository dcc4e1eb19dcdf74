"""A model's download as a process of its own: ``python -m dcaseg.worker.model_download ADDRESS``.

It reports on standard output, in the events of ``worker.protocol`` (progress, then nothing more or an error), and ends
with exit code 0 when the model is there. The module runs it so: Python's threads stand still while Slicer's own event
loop waits.
"""

from __future__ import annotations

import os
import sys
import threading

from ..errors import UserError
from ..models.download import Source, download_bundle
from ..models.store import own_models
from .protocol import Failure, Progress, encode

RUN = "download"  # the id of its events


def main(address: str) -> int:
    """Download for a process that reads the events; returns the exit code. Ends when its standard input does."""
    threading.Thread(target=_end_with_input, daemon=True).start()

    def send(event: Progress | Failure) -> None:
        sys.stdout.buffer.write(encode(event))
        sys.stdout.buffer.flush()

    try:
        download_bundle(Source.parse(address), own_models(), lambda *how: send(Progress(RUN, *how)))
    except UserError as error:
        send(Failure(RUN, error.problem, error.remedy))
        return 1
    return 0


def _end_with_input() -> None:
    # Whoever started this may have started a launcher before it, and can end that alone.
    sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
