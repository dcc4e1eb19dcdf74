"""Checks without Kubernetes that the parts of its manifest fit together and the image has the commands they call.

test_cohort_run.py runs the commands as local processes.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points

import pytest

pytest.importorskip("distributed", reason="the extra cohort is not installed")
pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker

from kubernetes_manifest import FOLDER, SCHEDULER, command, pods, resources

CONTAINERS = [container for pod in pods() for container in pod["containers"]]


def test_it_has_a_reachable_scheduler_workers_and_the_program():
    (service,) = resources("Service")
    scheduler, workers = resources("Deployment")
    assert [container["name"] for container in CONTAINERS] == ["scheduler", "worker", "cohort"]
    for deployment in (scheduler, workers):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == scheduler["spec"]["template"]["metadata"]["labels"]
    (port,) = service["spec"]["ports"]
    assert f"tcp://{service['metadata']['name']}:{port['port']}" == SCHEDULER
    assert command("scheduler")[command("scheduler").index("--port") + 1] == str(port["targetPort"])
    for container in ("worker", "cohort"):
        assert SCHEDULER in command(container)


def test_workers_and_program_mount_the_same_volume_at_the_same_path():
    _, *others = pods()
    places = [(pod["volumes"], pod["containers"][0]["volumeMounts"]) for pod in others]
    assert places[0] == places[1]
    volumes, mounts = places[0]
    assert [mount["name"] for mount in mounts] == [volume["name"] for volume in volumes]
    for path in (part for part in command("cohort") if part.startswith("/")):
        assert path.startswith(f"{mounts[0]['mountPath']}/")


def test_a_worker_requests_the_cores_that_it_uses_and_has_two_threads():
    (worker,) = (container for container in CONTAINERS if container["name"] == "worker")
    assert {"name": "OMP_NUM_THREADS", "value": worker["resources"]["requests"]["cpu"]} in worker["env"]
    assert command("worker")[command("worker").index("--nthreads") + 1] == "2"


def test_the_image_has_the_commands_and_their_options(dca):
    scripts = {each.name: each.value for each in entry_points(group="console_scripts")}
    assert scripts["dca"] == "dcaseg.cli:main"
    for container in CONTAINERS:
        assert container["command"][0] in scripts
    for main, name in ((dask_scheduler, "scheduler"), (dask_worker, "worker")):
        words = command(name)
        assert words[:2] == ["dask", name]
        known = {option for parameter in main.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known
    program = command("cohort")
    assert program[:2] == ["dca", "cohort"]
    page = dca("cohort", "--help").out
    for option in (word for word in program if re.match(r"--?[a-z]", word)):
        assert option in page


def test_all_pods_use_the_image_built_from_this_package():
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (built,) = (line.split(" -t ")[1].split()[0] for line in lines if "docker build" in line)
    assert {container["image"] for container in CONTAINERS} == {built}
    assert any(line.startswith("RUN pip install") and line.endswith('"/opt/dca[cohort]"') for line in lines)
    version = re.search(r'^version = "(.+)"$', (FOLDER.parents[1] / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert built.endswith(f":{version[1]}")
