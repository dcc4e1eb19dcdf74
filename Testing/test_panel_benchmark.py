"""The script that measures what a click on Apply costs besides the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.scene
def test_the_panel_is_measured_with_a_warm_worker(small_bundle, coarse_phantom, tmp_path):
    out = tmp_path / "panel.json"
    script = Path(__file__).with_name("measurements") / "panel_benchmark.py"
    program = [sys.executable, str(script), "--bundle", str(small_bundle)]
    run = subprocess.run(
        [*program, "--ct", str(coarse_phantom / "ct.nii.gz"), "-o", str(out)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "Everything but the network:" in run.stdout
    assert '"with_scene": true' in out.read_text(encoding="utf-8")
