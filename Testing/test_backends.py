"""Backends: each gives the results of PyTorch, and the fastest one is measured once and recorded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg import user_folders as cache
from dcaseg.benchmark.backends import compare_backends
from dcaseg.errors import UserError
from dcaseg.imaging.intensity import apply_window
from dcaseg.inference.backends import openvino as openvino_cpu
from dcaseg.inference.backends import selection as selection
from dcaseg.inference.backends.base import Task
from dcaseg.inference.backends.compiled import CompiledBackend, find_compiler
from dcaseg.inference.backends.eager import EagerBackend
from dcaseg.inference.backends.selection import check_backend, choose_backend
from dcaseg.inference.device import make_cpu_device
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.segmenter import Segmenter
from dcaseg.inference.sliding_window import RESULT, WindowPrediction, extract_center_window
from dcaseg.method.streaming import RequestedOutputs
from dcaseg.models.bundle import Bundle
from dcaseg.synthesis.phantom.case import generate
from small_model import PATCH, SmallModel, vivid_network

torch.set_num_threads(1)

needs_openvino = pytest.mark.skipif(not openvino_cpu.is_installed(), reason="needs OpenVINO (extra openvino)")
needs_bfloat16 = pytest.mark.skipif(
    not (openvino_cpu.is_installed() and openvino_cpu.supports_bfloat16()),
    reason="needs OpenVINO and a processor with AMX or AVX-512 BF16",
)
SHIPPED = Path(__file__).parents[1] / "DCASegmentation/dcaseg/models/shipped" / "dca-abdomen"
CLOSE = 1e-4
EVERYTHING = RequestedOutputs(True, True, (2, 4))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(selection.VARIABLE, raising=False)
    monkeypatch.delenv(selection.EARLIER_VARIABLE, raising=False)
    monkeypatch.delenv(selection.PRECISION_VARIABLE, raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def windows():
    return torch.rand(2, 1, *PATCH, generator=torch.Generator().manual_seed(5))


def task(wanted=EVERYTHING, weights_sha256="0123", **options):
    return Task(vivid_network(5, **options), wanted, PATCH, make_cpu_device(), weights_sha256)


def assert_same_answer(given, expected):
    """Attention within 1e-4, logits within 1e-4 of their range, and the same labels except where two are that close."""
    assert given.attention.keys() == expected.attention.keys()
    for level, weights in expected.attention.items():
        assert (given.attention[level] - weights).abs().max() < CLOSE
    for ours, theirs in ((given.aggregated, expected.aggregated), (given.stitched, expected.stitched)):
        assert (ours is None) == (theirs is None)
        if theirs is None:
            continue
        close = CLOSE * float(theirs.max() - theirs.min())
        assert (ours - theirs).abs().max() < close
        best, second = theirs.topk(2, dim=1).values.unbind(1)
        leads = (best - second)[ours.argmax(1) != theirs.argmax(1)]
        assert (leads < close).all()
        assert len(theirs.argmax(1).unique()) > 3, "one label everywhere would prove nothing"


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        pytest.param(EVERYTHING, {}, id="everything"),
        pytest.param(
            RequestedOutputs(False, True, (3,)),
            {"stitching": "log_softmax", "fusion": "average"},
            id="experts",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_openvino_gives_the_results_of_pytorch(windows, wanted, options):
    asked = task(wanted, weights_sha256=None, **options)
    assert_same_answer(selection.make_backend("openvino", asked)(windows), EagerBackend(asked)(windows))


@pytest.mark.slow
@needs_openvino
def test_openvino_gives_the_labels_of_the_shipped_model():
    bundle = Bundle.load(SHIPPED)
    asked = Task(bundle.network(), RequestedOutputs(), bundle.metadata.patch, make_cpu_device())
    ct = generate(3, spacing=(4.0, 4.0, 4.0), orientation="RAS").ct
    volume = torch.from_numpy(apply_window(sitk.GetArrayFromImage(ct), *bundle.metadata.hu_window))
    windows = extract_center_window(volume, bundle.metadata.patch)
    ours, theirs = (run(windows).aggregated for run in (selection.make_backend("openvino", asked), EagerBackend(asked)))
    assert (ours.softmax(1) - theirs.softmax(1)).abs().max() < CLOSE
    assert (ours.argmax(1) != theirs.argmax(1)).sum() <= 1, "a tie may go either way, no more"
    assert len(theirs.argmax(1).unique()) > 5


@pytest.mark.slow
@needs_openvino
def test_labels_of_a_ct_are_the_same_with_openvino():
    noise = np.random.default_rng(4).normal(size=(20, 36, 40))
    ct = sitk.GetImageFromArray((200 * noise).astype(np.int16))
    ct.SetSpacing((4.0, 4.0, 4.0))
    model = SmallModel(vivid_network())
    options = SegmentOptions(overlap=0.0, entropy=True)
    plain = Segmenter(model, "cpu").segment(ct, options)
    ours = Segmenter(model, "cpu", backend="openvino").segment(ct, options)
    assert (plain.backend, ours.backend) == ("eager", "openvino")
    different = sitk.GetArrayFromImage(plain.labels) != sitk.GetArrayFromImage(ours.labels)
    assert different.mean() < 1e-4
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(ours.entropy), sitk.GetArrayFromImage(plain.entropy), atol=10 * CLOSE
    )


@pytest.mark.slow
@needs_openvino
def test_a_conversion_is_cached_and_reused(windows, own_cache, monkeypatch):
    asked = task(RequestedOutputs())
    first = selection.make_backend("openvino", asked)(windows)
    (kept,) = (own_cache / "openvino").iterdir()
    assert not [each for each in kept.parent.iterdir() if "partial" in each.name]
    monkeypatch.setattr(openvino_cpu, "_convert", lambda *_: pytest.fail("converted although it was kept"))
    torch.testing.assert_close(selection.make_backend("openvino", asked)(windows).aggregated, first.aggregated)


@pytest.mark.slow
@needs_openvino
def test_a_damaged_conversion_is_replaced(windows, own_cache):
    asked = task(RequestedOutputs())
    first = selection.make_backend("openvino", asked)(windows)
    (compiled,) = (own_cache / "openvino").glob("*/compiled.blob")
    damaged = compiled.read_bytes()[:-100] + bytes(100)
    compiled.write_bytes(damaged)
    again = selection.make_backend("openvino", asked)(windows)
    torch.testing.assert_close(again.aggregated, first.aggregated)
    whole = compiled.read_bytes()
    assert whole != damaged
    contents = json.loads((compiled.parent / "contents.json").read_text(encoding="utf-8"))
    assert contents["sha256"] == hashlib.sha256(whole).hexdigest()


@needs_openvino
def test_each_combination_of_weights_options_patch_and_outputs_has_its_own_conversion():
    openvino = openvino_cpu.load_openvino()
    asked = task(RequestedOutputs())
    others = [
        replace(asked, weights_sha256="other"),
        replace(asked, wanted=RequestedOutputs(attention_levels=(4,))),
        replace(asked, patch=(32, 32, 48)),
        replace(asked, network=vivid_network(5, stitching="raw")),
    ]
    keys = [json.dumps(openvino_cpu._make_cache_key(each, openvino, "f32")) for each in (asked, *others)]
    keys.append(json.dumps(openvino_cpu._make_cache_key(asked, openvino, "bf16")))
    assert len(set(keys)) == len(keys)


@pytest.mark.slow
@needs_openvino
def test_a_read_only_cache_does_not_prevent_a_run(windows, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    assert selection.make_backend("openvino", task(RequestedOutputs()))(windows).aggregated.shape[0] == 2
    assert (tmp_path / "file").read_text() == "no folder"


@needs_openvino
def test_openvino_sends_no_telemetry():
    script = (
        "import sys; from dcaseg.inference.backends.openvino import load_openvino;"
        "assert load_openvino().__name__ == 'openvino';"
        "assert sys.modules.get('openvino_telemetry') is None;"
        "import openvino.tools.ovc.telemetry_utils as used; assert used.tm.__name__.endswith('telemetry_stub')"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_torch_compile_gives_the_results_of_pytorch(windows):
    asked = task(RequestedOutputs(attention_levels=(4,)))
    assert_same_answer(CompiledBackend(asked)(windows), EagerBackend(asked)(windows))


class Stand:
    """A backend with a given run time and error."""

    def __init__(self, name, seconds, error=0.0):
        self.name, self.seconds, self.error = name, seconds, error
        self.made = 0

    def __call__(self, asked):
        self.made += 1
        eager = EagerBackend(asked)

        def run(windows):
            whole = eager(windows)
            selection.perf_counter.now += self.seconds * len(windows)
            return whole._replace(aggregated=whole.aggregated + self.error * torch.arange(6).view(1, 6, 1, 1, 1))

        backend = SimpleNamespace(name=self.name)
        return _Called(backend, run)


class _Called:
    def __init__(self, backend, run):
        self.name, self._run = backend.name, run
        self.needs_network, self.windows_at_once = True, 1

    def release_memory(self):
        pass

    def __call__(self, windows):
        return self._run(windows)


@pytest.fixture
def stands(monkeypatch):
    """Three backends besides eager, with a simulated clock, so that the choice does not depend on this machine."""

    def clock():
        return clock.now

    clock.now = 0.0
    monkeypatch.setattr(selection, "perf_counter", clock)
    times = (("openvino", 1.0), ("openvino-bf16", 0.75), ("compile", 0.5))
    made = {name: Stand(name, seconds) for name, seconds in times}

    original = selection._measure

    def slow_eager(backend, windows):
        seconds, given = original(backend, windows)
        return (2.0, given) if backend.name == "eager" else (seconds, given)

    monkeypatch.setattr(selection, "_measure", slow_eager)
    monkeypatch.setattr(selection, "BACKENDS", {"eager": EagerBackend, **made})
    monkeypatch.setattr(selection, "get_unavailable_reason", lambda *_: None)
    return SimpleNamespace(**{name.replace("-", "_"): stand for name, stand in made.items()})


def choose(name, windows, asked=None, said=None):
    said = [] if said is None else said
    return choose_backend(name, asked or task(RequestedOutputs()), windows, said.append, said.append)


def test_the_fastest_is_chosen_and_recorded(windows, stands):
    said = []
    assert choose("auto", windows, said=said).name == "openvino"
    assert said == ["Measuring which backend is fastest (once for this model)"]
    assert choose("auto", windows, said=said).name == "openvino"
    assert len(said) == 1
    assert choose("auto", windows, replace(task(RequestedOutputs()), weights_sha256="another"), said).name == "openvino"
    assert len(said) == 2, "another model is measured separately"


def test_slow_compilation_is_measured_only_on_request(windows, stands):
    choose("auto", windows)
    assert stands.compile.made == 0
    assert choose("measure", windows).name == "compile"
    assert choose("auto", windows).name == "compile"


@pytest.fixture
def allow_bfloat16(monkeypatch):
    monkeypatch.setenv(selection.PRECISION_VARIABLE, "bfloat16")


@pytest.mark.slow
def test_bfloat16_is_chosen_only_if_it_is_allowed(windows, stands, monkeypatch):
    assert choose("auto", windows).name == "openvino"
    assert choose("measure", windows).name == "compile"
    assert stands.openvino_bf16.made == 0
    monkeypatch.setenv(selection.PRECISION_VARIABLE, "bfloat16")
    assert choose("auto", windows).name == "openvino-bf16", "measured again, not the record of float32"
    monkeypatch.setenv(selection.PRECISION_VARIABLE, "float32")
    assert choose("auto", windows).name == "compile"


@pytest.mark.usefixtures("allow_bfloat16")
@pytest.mark.parametrize("error", [0.3, float("nan")])
def test_bfloat16_with_other_labels_is_not_chosen(windows, stands, error):
    """The error favors higher labels, the more the higher they are."""
    stands.openvino_bf16.error = error
    said = []
    assert choose("auto", windows, said=said).name == "openvino"
    (line,) = [line for line in said if "openvino-bf16" in line]
    assert line.startswith("The results of the backend openvino-bf16 differ from PyTorch's (mean Dice 0.")


def test_bfloat16_with_the_same_labels_and_other_probabilities_is_not_chosen(windows):
    expected = EagerBackend(task(RequestedOutputs()))(windows)
    assert selection._compare_labels(expected, expected) == ""
    sharper = expected._replace(aggregated=1.5 * expected.aggregated)
    assert "on average" in selection._compare_labels(sharper, expected)


@pytest.mark.usefixtures("allow_bfloat16")
def test_bfloat16_with_few_other_labels_is_chosen(windows, stands):
    """Single probabilities may differ by more than in single precision."""
    stands.openvino_bf16.error = 1e-4
    asked = task(RequestedOutputs())
    assert choose("auto", windows, asked).name == "openvino-bf16"


@pytest.mark.usefixtures("allow_bfloat16")
def test_bfloat16_is_not_chosen_by_a_window_without_organs(windows, stands):
    asked = task(RequestedOutputs())
    with torch.no_grad():
        asked.network.aggregation.head.bias[0] += 1e3
    said = []
    assert choose("auto", windows, asked, said).name == "openvino"
    assert any("cannot be checked" in line for line in said)


def test_an_unknown_precision_is_refused(monkeypatch):
    monkeypatch.setenv(selection.PRECISION_VARIABLE, "int4")
    with pytest.raises(UserError, match="DCA_PRECISION is 'int4'") as caught:
        Segmenter(SmallModel(vivid_network()), "cpu", backend="auto")
    assert "bfloat16" in caught.value.remedy


@needs_openvino
def test_bfloat16_is_refused_on_a_processor_without_it(monkeypatch):
    monkeypatch.setattr(selection, "supports_bfloat16", lambda: False)
    with pytest.raises(UserError, match="openvino-bf16 needs a processor"):
        check_backend("openvino-bf16", make_cpu_device())


@pytest.mark.slow
@needs_bfloat16
def test_bfloat16_computes_the_network_in_lower_precision(windows):
    """Random weights on noise: an error of a thousandth in each layer adds up."""
    asked = task(RequestedOutputs(), weights_sha256=None)
    ours, theirs = selection.make_backend("openvino-bf16", asked)(windows[:1]), EagerBackend(asked)(windows[:1])
    difference = (ours.aggregated.softmax(1) - theirs.aggregated.softmax(1)).abs()
    assert 1e-5 < difference.mean() < 0.05


@pytest.mark.slow
@needs_bfloat16
def test_bfloat16_gives_the_labels_of_the_shipped_model():
    """Fails if the sums of instance normalization are rounded to bfloat16, too."""
    bundle = Bundle.load(SHIPPED)
    asked = Task(bundle.network(), RequestedOutputs(), bundle.metadata.patch, make_cpu_device())
    ct = generate(3, spacing=bundle.metadata.spacing, orientation="RAS").ct
    volume = torch.from_numpy(apply_window(sitk.GetArrayFromImage(ct), *bundle.metadata.hu_window))
    windows = extract_center_window(volume, bundle.metadata.patch)
    ours, theirs = (run(windows) for run in (selection.make_backend("openvino-bf16", asked), EagerBackend(asked)))
    assert selection._compare_labels(ours, theirs) == ""
    assert len(theirs.aggregated.argmax(1).unique()) > 5


def test_backends_are_compared_on_whole_cts(monkeypatch):
    """The reference agrees with itself; a backend that favors the higher labels does not."""
    monkeypatch.setattr(selection, "BACKENDS", {"eager": EagerBackend, "openvino": _favoring_high_labels})
    monkeypatch.setattr(selection, "get_unavailable_reason", lambda *_: None)
    noise = np.random.default_rng(4).normal(size=(20, 36, 40))
    ct = sitk.GetImageFromArray((200 * noise).astype(np.int16))
    ct.SetSpacing((4.0, 4.0, 4.0))
    options = SegmentOptions(overlap=0.0, entropy=True, keep_islands=True)
    runs = compare_backends(SmallModel(vivid_network()), [("noise", ct)], ("eager", "openvino"), 2, options)
    assert [(run.backend, run.round) for run in runs] == [("eager", 1), ("openvino", 1), ("eager", 2), ("openvino", 2)]
    plain, other = runs[2:]
    assert set(plain.agreement.values()) == {1.0}
    assert plain.entropy == 0
    assert other.mean_agreement < 0.99
    assert other.min_agreement[0] < other.mean_agreement
    assert other.entropy > 1e-4
    assert all(run.cpu_s > 0 for run in runs)


def _favoring_high_labels(asked):
    eager = EagerBackend(asked)

    def run(windows):
        whole = eager(windows)
        labels = torch.arange(whole.aggregated.shape[1]).view(1, -1, 1, 1, 1)
        return whole._replace(aggregated=whole.aggregated + 0.5 * labels)

    return _Called(SimpleNamespace(name="openvino"), run)


def test_the_command_line_compares_backends(dca, small_bundle, coarse_phantom, tmp_path):
    out = tmp_path / "runs.csv"
    ct = coarse_phantom / "ct.nii.gz"
    run = dca("benchmark", "backends", ct, "--bundle", small_bundle, "--backends", "eager", "--maps", "-o", out)
    assert run.code == 0, run.err
    assert "agreement with eager" in run.out
    lines = out.read_text().splitlines()
    assert lines[0] == "ct,backend,round,cpu_s,organ,dice"
    assert all(line.endswith(",1.00000") for line in lines[1:])


def test_a_fast_backend_with_different_results_is_not_chosen(windows, stands):
    stands.openvino.error = 0.1
    said = []
    assert choose("auto", windows, said=said).name == "eager"
    assert any("results of the backend openvino differ" in line for line in said)


def test_a_backend_with_nan_results_is_not_chosen(windows, stands):
    stands.openvino.error = float("nan")
    assert choose("auto", windows).name == "eager"


def test_a_backend_that_fails_in_the_measurement_is_not_chosen(windows, stands, monkeypatch, own_cache):
    def fail(_):
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(selection.BACKENDS, "openvino", fail)
    assert choose("auto", windows).name == "eager"
    (record,) = (own_cache / "backends").iterdir()
    assert "no such instruction" in json.loads(record.read_text())["measured"]["openvino"]["failed"]


def phantom():
    return generate(3, spacing=(8.0, 8.0, 8.0), orientation="RAS").ct


def recorded_model():
    model = SmallModel(vivid_network(5))
    model.weights_sha256 = "0123"
    return model


def test_without_memory_for_the_measurement_eager_runs_and_nothing_is_recorded(windows, stands, monkeypatch, own_cache):
    def no_memory(self, _):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(EagerBackend, "__call__", no_memory)
        assert choose("auto", windows).name == "eager"
    assert not (own_cache / "backends").exists()
    assert choose("auto", windows).name == "openvino"


@pytest.mark.slow
def test_if_memory_runs_out_while_backends_are_measured_smaller_batches_are_used(stands, monkeypatch):
    """Another program uses most of the memory: it is too short for the measurement, and then for two windows."""
    original, calls = EagerBackend.__call__, []

    def short(self, windows):
        calls.append(len(windows))
        if len(calls) == 1 or len(windows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, windows)

    expected = Segmenter(recorded_model(), device="cpu").segment(phantom(), SegmentOptions(overlap=0.0))
    monkeypatch.setattr(EagerBackend, "__call__", short)
    segmenter = Segmenter(recorded_model(), device="cpu", backend="auto")
    result = segmenter.segment(phantom(), SegmentOptions(overlap=0.0, batch=2))
    assert calls[0] == 1 and result.backend == "eager"
    assert any("continuing with 1" in warning for warning in result.warnings)
    assert sitk.Hash(result.labels) == sitk.Hash(expected.labels)


@pytest.mark.slow
def test_a_scan_without_a_body_is_not_measured_and_has_no_organ(stands, own_cache):
    noise = np.random.default_rng(0).normal(-1000, 10, (40, 40, 40)).astype(np.int16)
    air = sitk.GetImageFromArray(noise)
    air.SetSpacing((4.0, 4.0, 4.0))
    segmenter = Segmenter(recorded_model(), device="cpu", backend="auto")
    result = segmenter.segment(air)
    assert any("No organ was found" in warning for warning in result.warnings)
    assert not sitk.GetArrayViewFromImage(result.labels).any()
    assert not (own_cache / "backends").exists()
    # The next CT is measured.
    assert segmenter.segment(phantom(), SegmentOptions(overlap=0.0)).backend == "openvino"
    assert segmenter.segment(air, SegmentOptions(overlap=0.0)).backend == "openvino", "the last CT's is kept"


def test_an_unreadable_record_is_replaced(windows, stands, own_cache):
    choose("auto", windows)
    (record,) = (own_cache / "backends").iterdir()
    record.write_text("{")
    assert choose("auto", windows).name == "openvino"
    assert json.loads(record.read_text())["backend"] == "openvino"


def test_the_environment_variable_selects_the_backend(windows, stands, monkeypatch):
    monkeypatch.setenv(selection.EARLIER_VARIABLE, "eager")
    assert choose("auto", windows).name == "eager"
    monkeypatch.setenv(selection.VARIABLE, "openvino")
    assert choose("auto", windows).name == "openvino"
    assert choose("eager", windows).name == "eager"


def test_an_unknown_backend_is_refused_with_a_remedy():
    with pytest.raises(UserError, match="The backend 'abacus' does not exist") as caught:
        check_backend("abacus", make_cpu_device())
    assert "eager" in caught.value.remedy
    with pytest.raises(UserError, match="cuda-half needs a CUDA GPU"):
        check_backend("cuda-half", make_cpu_device())


def test_missing_openvino_is_refused_with_the_install_command(monkeypatch):
    monkeypatch.setattr(selection, "is_installed", lambda: False)
    with pytest.raises(UserError, match="OpenVINO is not installed") as caught:
        Segmenter(SmallModel(vivid_network()), "cpu", backend="openvino")
    assert "pip install" in caught.value.remedy


def test_a_backend_that_fails_during_a_run_falls_back_to_pytorch(windows):
    class Failing(EagerBackend):
        name = "openvino"
        left = 1

        def __call__(self, given):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the primitive failed\nat length")
            return super().__call__(given)

    said = []
    predict = WindowPrediction(
        lambda _: vivid_network(), SegmentOptions(batch=1), make_cpu_device(), said.append, Failing
    )
    plain = WindowPrediction(lambda _: vivid_network(), SegmentOptions(batch=1), make_cpu_device(), print)
    torch.testing.assert_close(predict(windows)[RESULT], plain(windows)[RESULT])
    assert said == ["The backend openvino failed (the primitive failed): continuing with PyTorch."]
    assert predict.backend == "eager"


@pytest.mark.slow
@needs_openvino
def test_the_command_line_runs_openvino(dca, small_bundle, coarse_phantom, tmp_path):
    out = tmp_path / "out"
    ct = coarse_phantom / "ct.nii.gz"
    run = dca("segment", ct, "-o", out, "--bundle", small_bundle, "--no-scene", "--backend", "openvino")
    assert run.code == 0, run.err
    assert "backend openvino" in run.out
    assert json.loads((out / "request.json").read_text())["backend"] == "openvino"
    (kept,) = (tmp_path / "cache" / "openvino").glob("*/contents.json")
    assert Bundle.load(small_bundle).weights_sha256 in kept.read_text()


def test_the_command_line_refuses_an_unknown_backend(dca, small_bundle, coarse_phantom, tmp_path):
    ct = coarse_phantom / "ct.nii.gz"
    run = dca("segment", ct, "-o", tmp_path / "out", "--bundle", small_bundle, "--backend", "x")
    assert run.code == 2
    assert "The backend 'x' does not exist" in run.err
    assert not (tmp_path / "out").exists()
