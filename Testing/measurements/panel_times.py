"""Measure the time from Apply to segments in the scene, outside the network, and how long the GUI was blocked.

Run: python Testing/measurements/panel_times.py CT [BUNDLE]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_slicer.event_loop_watch import EventLoopWatch
from fake_slicer.fake_slicer import FakeSlicer, installed

NETWORK = "network"  # the worker's name of that phase


def main(ct: str) -> None:
    """Segment ``ct`` twice, so that the worker is warm the second time."""
    from dcaseg.imaging.readers import read_ct
    from DCASegmentationLib.scene.volumes import show_ct

    image = read_ct(Path(ct))
    with tempfile.TemporaryDirectory() as folder, installed(FakeSlicer(Path(folder))) as fake:
        show_ct(image, "CT")
        panel = fake.make_widget(fake.load_module()).panel
        outcomes = []
        segment = panel.logic.segment

        def listened(*order: Any, **choices: Any) -> None:
            finished = choices.pop("onFinished")
            segment(*order, onFinished=lambda outcome: (outcomes.append(outcome), finished(outcome)), **choices)

        from DCASegmentationLib import logic

        shown: list[float] = []
        show_result = logic.show_result

        def watched(*arguments: Any) -> Any:
            nodes = show_result(*arguments)
            shown.append(time.monotonic())
            return nodes

        panel.logic.segment = listened
        logic.show_result = watched
        for name in ("first", "warm"):
            outcomes.clear()
            started = time.monotonic()
            with EventLoopWatch() as running:
                panel.segmentPanel.ui.applyButton.click()
                fake.run_until(lambda: bool(outcomes), 3600)
                fake.run_until(lambda: not working(panel), 600)
            seconds = time.monotonic() - started
            if outcomes[0].nodes is None:
                raise SystemExit(f"{name}: {outcomes[0].error}")
            network = outcomes[0].seconds[NETWORK]
            visible = shown[-1] - started
            print(f"{name}: segments after {visible:.2f} s, everything after {seconds:.2f} s (network {network:.2f} s)")
            print("  " + ", ".join(f"{phase} {value:.2f} s" for phase, value in outcomes[0].seconds.items()))
            tell(running)
        review = panel.reviewPanel
        review.goToNext()
        row = next(row for row, place in enumerate(review._findings) if place.alternative is not None)
        actions = {
            "Accept alternative with 3D": (lambda: review.goTo(row), review.ui.suggestionButton.click),
            "Edit here": (lambda: None, review.ui.editButton.click),
            "What changed": (lambda: None, review.ui.changesButton.click),
            "a map": (lambda: None, lambda: setattr(panel.parameters, "expertMap", "tail")),
        }
        for name, (prepare, act) in actions.items():
            prepare()
            fake.process_events(0.2)
            with EventLoopWatch() as running:
                act()
                fake.wait_for(lambda: not working(panel), 600)
                fake.process_events(0.8)
            print(name)
            tell(running)
        panel.cleanup()


def working(panel: Any) -> bool:
    """Whether steps of the panel are still to come."""
    steps = (panel._showing, panel.segmentControl.show3D._steps, panel.reviewPanel._surfaces, panel.expertsPanel._steps)
    return any(each.isRunning for each in (*steps, panel.correctPanel._steps))


def tell(running: EventLoopWatch) -> None:
    """Print for how long the window stood at most."""
    still = max((late for _moment, late, _own in running.blocks), default=0.0)
    own = max((own for _moment, _late, own in running.blocks), default=0.0)
    print(f"  the GUI stood still for {still:.2f} s at most, of its own computing for {own:.2f} s at most", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.environ["DCA_MODELS"] = sys.argv[2]
    main(sys.argv[1])
