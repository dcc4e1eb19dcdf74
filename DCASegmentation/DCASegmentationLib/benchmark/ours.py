"""``dca segment`` with some windows replayed, as other programs are measured.

Run: python -m DCASegmentationLib.benchmark.ours CT OUT --model BUNDLE [--windows K] [--options JSON]

The same job from the CT's file to a folder of results; ``--options`` are fields of
``inference.options.SegmentOptions``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..inference.own_process import importing


def main() -> None:
    """The program."""
    with importing():
        from ..bundle.loading import Bundle
        from ..inference.allocator import keep_freed_memory
        from ..inference.options import SegmentOptions
        from ..job import Job, segment_to_folder
        from .counted import CountedSegmenter
        from .windows import add_arguments

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--options", type=json.loads, default={}, help="what to ask for, as JSON")
    told = parser.parse_args()
    keep_freed_memory()
    bundle = Bundle.load(told.model)
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.options.items()}
    segmenter = CountedSegmenter(bundle, told.windows)
    job = Job(told.ct, told.out, bundle, SegmentOptions(**options), "cpu", extension=".nii.gz")
    segment_to_folder(job, segmenter=segmenter)
    if told.report and segmenter.counted is not None:
        segmenter.counted.windows.costs.write(told.report)


if __name__ == "__main__":
    main()
