"""Reads the Kubernetes manifest for tests: its resources and the commands of its containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "Resources/Kubernetes"
SCHEDULER = "tcp://dca-scheduler:8786"


def resources(kind: str) -> list[dict[str, Any]]:
    """All resources of a kind, in their order."""
    with (FOLDER / "cohort.yaml").open(encoding="utf-8") as stream:
        return [each for each in yaml.safe_load_all(stream) if each["kind"] == kind]


def pods() -> list[dict[str, Any]]:
    """The specifications of all pods."""
    return [each["spec"]["template"]["spec"] for kind in ("Deployment", "Job") for each in resources(kind)]


def command(container: str) -> list[str]:
    """The command of the container of that name."""
    (found,) = (each for pod in pods() for each in pod["containers"] if each["name"] == container)
    return list(found["command"])
