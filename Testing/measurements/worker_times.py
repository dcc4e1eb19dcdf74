"""Measure how long the worker takes to start, to segment cold and warm, and to end after a cancellation.

Run: python Testing/measurements/worker_times.py BUNDLE CT [OUT_FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dcaseg.worker.protocol import Done, Segment, encode
from worker_client import Worker

PHASES = ("Checking the model", "Reading the CT", "Resampling", "Segmenting window 1 ", "Writing the results")


def main(bundle: str, ct: str, folder: Path) -> None:
    """Print the times, with all maps and without overlap of windows."""
    options = {"overlap": 0.0, "attention_levels": [1, 2, 3, 4]}
    options |= {"dominant_expert": True, "entropy": True, "disagreement": True}

    def request(name: str) -> Segment:
        return Segment("1", ct, str(folder / name), bundle, "cpu", options)

    started = time.monotonic()
    worker = Worker()
    worker.next_event()
    print(f"hello after {time.monotonic() - started:.2f} s")
    for name in ("first", "second"):
        started = time.monotonic()
        answer = worker.segment(request(name))
        assert isinstance(answer, Done), answer
        seconds = time.monotonic() - started
        outside = seconds - sum(answer.seconds.values())
        loading = answer.seconds["load network"]
        print(f"{name} run {seconds:.2f} s: {loading:.4f} s to load the network, {outside:.2f} s outside of its phases")
    worker.close()
    for phase in PHASES:
        worker = Worker()
        worker.next_event()
        worker.write(encode(request("cancelled")))
        worker.wait_for_progress(phase)
        time.sleep(0.05)
        started = time.monotonic()
        worker.cancel()
        last = worker.rest()[-1]
        said = time.monotonic() - started
        worker.wait()
        left = [path.name for path in folder.iterdir() if path.name not in ("first", "second")]
        gone = time.monotonic() - started
        print(f"cancelled at '{phase.strip()}': {last.type} after {said:.2f} s, gone after {gone:.2f} s, left: {left}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3] if len(sys.argv) > 3 else temporary))
