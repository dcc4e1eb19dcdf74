"""The Setup section: it shows what is missing and installs it with one button; models can be managed offline."""

from __future__ import annotations

import html
import os
import re
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.scene
slicer = pytest.importorskip("slicer")

from dcaseg.errors import UserError
from model_server import serving
from module_driving import (
    add_ct,
    apply,
    message,
    segmentations,
    started_worker_process_id,
    wait_for_end,
    worker_processes,
)
from worker_client import is_gone


@pytest.fixture(autouse=True)
def a_computer_without_models(monkeypatch, tmp_path):
    monkeypatch.delenv("DCA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dcaseg.models.store._get_shipped_folders", lambda: [])


@pytest.fixture
def setup(module_panel) -> Any:
    return module_panel.setupPanel


def zip_of(bundle: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in bundle.rglob("*"):
            archive.write(path, path.relative_to(bundle))
    return target


def models_to_choose(widget: Any) -> list[str]:
    selector = widget.segmentPanel.ui.modelSelector
    return [selector.itemText(index) for index in range(selector.count)]


def test_the_section_is_open_while_a_model_is_missing(module_panel, setup):
    assert not module_panel.ui.setupSection.collapsed
    assert "No model is installed" in setup.ui.modelLabel.text
    assert models_to_choose(module_panel) == ["None installed: see Setup"]


def test_a_model_from_a_zip_can_be_selected_at_once_and_deleted_after_a_question(
    module_panel, setup, fake_slicer, small_bundle, tmp_path
):
    fake_slicer.dialogs.answer(zip_of(small_bundle, tmp_path / "model.zip"))
    setup.ui.addZipButton.click()
    assert "checksum is correct" in setup.ui.setupMessageLabel.text
    assert models_to_choose(module_panel) == ["random-weights"]
    assert "Random weights" in module_panel.segmentPanel.ui.modelCardBrowser.plainText
    assert not setup.ui.deleteModelButton.enabled
    setup.ui.modelList.setCurrentRow(0)
    fake_slicer.dialogs.answer(False, True)
    setup.ui.deleteModelButton.click()
    assert models_to_choose(module_panel) == ["random-weights"]
    setup.ui.deleteModelButton.click()
    assert "random-weights" not in models_to_choose(module_panel)


def test_a_model_from_a_folder_can_be_added(module_panel, setup, fake_slicer, small_bundle):
    fake_slicer.dialogs.answer(small_bundle)
    setup.ui.addFolderButton.click()
    assert models_to_choose(module_panel) == ["random-weights"]


def test_a_file_that_is_not_a_model_is_named(setup, fake_slicer, tmp_path):
    (tmp_path / "letter.zip").write_text("hello")
    fake_slicer.dialogs.answer(tmp_path / "letter.zip")
    setup.ui.addZipButton.click()
    assert "letter.zip" in setup.ui.setupMessageLabel.text


def test_canceling_a_dialog_changes_nothing(setup, fake_slicer):
    fake_slicer.dialogs.answer("", "")
    setup.ui.addZipButton.click()
    setup.ui.addFolderButton.click()
    assert not setup.ui.setupMessageLabel.visible


def test_torch_is_installed_through_the_extension_by_one_button(setup, fake_slicer):
    fake_slicer.torch.is_installed = False
    setup.update()
    assert "not installed" in setup.ui.torchLabel.text
    assert not setup.ui.installTorchButton.isHidden()
    setup.ui.installTorchButton.click()
    assert "is installed" in setup.ui.torchLabel.text
    assert setup.ui.installTorchButton.isHidden()


def test_a_failed_installation_is_reported(setup, fake_slicer):
    fake_slicer.torch.is_installed = False
    fake_slicer.torch.install_fails = True
    setup.update()
    setup.ui.installTorchButton.click()
    assert "PyTorch was not installed" in setup.ui.setupMessageLabel.text


def test_without_the_extension_its_button_reports_why_it_cannot_be_installed(setup, fake_slicer, monkeypatch):
    fake_slicer.torch.is_installed = False
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "PyTorchUtils", None)
        setup.update()
        assert "which installs PyTorch, is missing" in setup.ui.extensionLabel.text
        assert setup.ui.installTorchButton.isHidden()
        setup.ui.installExtensionButton.click()
        assert "Extensions Manager" in setup.ui.setupMessageLabel.text


def test_apply_installs_torch_at_first_use_and_reports_a_failure(
    module_panel, setup, fake_slicer, small_bundle, monkeypatch
):
    from DCASegmentationLib.scene.volumes import show_ct
    from scene_case import small_ct

    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    module_panel.parameters.inputVolume = show_ct(small_ct(), "CT")
    module_panel.segmentControl.updateModels()
    fake_slicer.torch.is_installed = False
    fake_slicer.torch.install_fails = True
    module_panel.segmentPanel.ui.applyButton.click()
    assert "PyTorch was not installed" in module_panel.segmentPanel.ui.messageLabel.text
    assert not module_panel.logic.isRunning


def test_a_slider_step_does_not_look_for_packages_or_models(module_panel, small_bundle, monkeypatch):
    from DCASegmentationLib import requirements
    from DCASegmentationLib.widgets import segment_panel

    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    module_panel.segmentControl.updateModels()
    looked = []
    monkeypatch.setattr(requirements, "_getInstalledVersion", lambda package: looked.append(package))
    monkeypatch.setattr(segment_panel, "formatModelCard", lambda model: looked.append(model) or "")
    module_panel.parameters.mapOpacity = 0.7
    assert looked == []
    module_panel.setupPanel.update()
    module_panel.segmentControl.updateModels()
    assert "torch" in looked and len(looked) > 1, "opening the module does look"


def test_an_intel_mac_is_reported_before_anything_is_downloaded(setup, fake_slicer, monkeypatch):
    from DCASegmentationLib import requirements

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    fake_slicer.torch.is_installed = False
    setup.update()
    assert "is 2.2.2" in setup.ui.torchLabel.text and "2.4.1" in setup.ui.torchLabel.text
    assert setup.ui.installTorchButton.isHidden() and setup.ui.installExtensionButton.isHidden()
    messages = []
    for install in (lambda: requirements.installTorch(messages.append), requirements.installExtension):
        with pytest.raises(UserError, match="Intel"):
            install()
    assert messages == [] and not fake_slicer.torch.is_installed


@pytest.mark.parametrize(
    ("version", "old"), [("2.2.2", True), ("2.4.0+cu121", True), ("2.4.1", False), ("2.13.0", False)]
)
def test_a_pytorch_that_is_too_old_is_reported(setup, monkeypatch, version, old):
    from DCASegmentationLib import requirements

    monkeypatch.setattr(requirements, "getTorchVersion", lambda: version)
    setup.update()
    assert ("but models need 2.4.1+" in setup.ui.torchLabel.text) == old
    assert setup.ui.installTorchButton.isHidden() != old


def test_a_pytorch_that_is_too_old_is_updated_by_one_button_or_by_apply(
    module_panel, setup, fake_slicer, small_bundle, monkeypatch
):
    from DCASegmentationLib import requirements

    version = "2.2.2"
    monkeypatch.setattr(requirements, "getTorchVersion", lambda: version)
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    module_panel.parameters.inputVolume = add_ct("CT")
    setup.update()
    module_panel.segmentControl.updateModels()
    with pytest.raises(UserError, match=r"PyTorch 2\.2\.2 is installed in Slicer, but models need 2\.4\.1\+"):
        module_panel.logic.segment(module_panel.parameters.inputVolume)
    apply(module_panel)
    assert "PyTorch was not updated: version 2.2.2" in message(module_panel) and not module_panel.logic.isRunning
    assert setup.ui.installTorchButton.text == "Update PyTorch"
    version = "2.4.1"
    setup.ui.installTorchButton.click()
    assert setup.ui.installTorchButton.isHidden() and fake_slicer.torch.requirements == [">=2.4.1"] * 2


def test_the_layout_of_saved_comparisons_is_known_once_slicer_has_started(module, fake_slicer, monkeypatch):
    from DCASegmentationLib.scene import view_setup

    # Another number, because other tests of this process have registered the real one.
    monkeypatch.setattr(view_setup, "COMPARISON", 7302)
    layouts = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    assert not layouts.IsLayoutDescription(7302)
    fake_slicer.finish_startup()
    assert layouts.IsLayoutDescription(7302)


def test_sample_data_are_offered_once_slicer_has_started(module, fake_slicer):
    assert fake_slicer.sample_data.sources == []
    fake_slicer.finish_startup()
    source = fake_slicer.sample_data.sources[-1]
    assert source["fileNames"] == "CTLiver.nrrd"
    assert source["uris"].endswith(source["checksums"].removeprefix("SHA256:"))


def test_a_model_is_downloaded_in_the_background_and_can_be_selected(
    module_panel, setup, fake_slicer, small_bundle, tmp_path
):
    archive = zip_of(small_bundle, tmp_path / "model.zip").read_bytes()
    with serving(archive) as server:
        server.waits_after = len(archive) // 2
        fake_slicer.dialogs.answer(server.address)
        setup.ui.downloadButton.click()
        fake_slicer.wait_for(lambda: "Downloading" in setup.ui.setupMessageLabel.text)
        assert re.search(r"\(\d+%\)", setup.ui.setupMessageLabel.text)
        assert setup.ui.downloadButton.text == "Stop download"
        setup.ui.downloadButton.click()
        fake_slicer.wait_for(lambda: "was stopped" in setup.ui.setupMessageLabel.text)
        assert models_to_choose(module_panel) == ["None installed: see Setup"]
        server.waits_after = None
        fake_slicer.dialogs.answer(server.address)
        setup.ui.downloadButton.click()
        fake_slicer.wait_for(lambda: models_to_choose(module_panel) == ["random-weights"])
        assert server.ranges[0] is None and server.ranges[1].startswith("bytes=")
    assert setup.ui.downloadButton.text == "Download model..."


@pytest.fixture
def held_download(setup, fake_slicer, small_bundle, tmp_path, monkeypatch) -> Iterator[int]:
    """The process ID of the worker of a download that waits for the server after half of the file."""
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    archive = zip_of(small_bundle, tmp_path / "model.zip").read_bytes()
    with serving(archive) as server:
        server.waits_after = len(archive) // 2
        workers = worker_processes()
        fake_slicer.dialogs.answer(server.address)
        setup.ui.downloadButton.click()
        fake_slicer.wait_for(lambda: "Downloading" in setup.ui.setupMessageLabel.text)
        yield started_worker_process_id(workers)


def own_model_files(tmp_path: Path) -> list[str]:
    folder = tmp_path / "home" / ".dca" / "models"
    return sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_apply_during_a_download_does_not_wait_for_it_and_canceling_does_not_end_it(
    held_download, warm_worker, module_panel, setup, fake_slicer, tmp_path
):
    module_panel.segmentControl.updateModels()
    module_panel.parameters.inputVolume = add_ct("CT")
    apply(module_panel)
    wait_for_end(module_panel, fake_slicer)
    assert len(segmentations()) == 1, message(module_panel)
    apply(module_panel)
    module_panel.segmentPanel.ui.applyButton.click()
    wait_for_end(module_panel, fake_slicer)
    assert "Canceled" in message(module_panel)
    assert setup.ui.downloadButton.text == "Stop download" and held_download in worker_processes()
    setup.ui.downloadButton.click()
    fake_slicer.wait_for(lambda: "was stopped" in setup.ui.setupMessageLabel.text)
    assert is_gone(held_download, 0.1) and own_model_files(tmp_path) == [".downloads"]


@pytest.mark.skipif(os.name != "posix", reason="ends the process by a signal")
def test_a_download_whose_process_is_killed_is_reported_once(held_download, setup, fake_slicer, monkeypatch, tmp_path):
    messages = []
    monkeypatch.setattr(setup, "_showMessage", messages.append)
    os.kill(held_download, signal.SIGKILL)
    fake_slicer.wait_for(lambda: setup.ui.downloadButton.text == "Download model...")
    fake_slicer.process_events(0.1)
    (said,) = [each for each in messages if each]
    assert "The download process was killed" in said and "resumes where it stopped" in said
    assert own_model_files(tmp_path) == [".downloads"]


def test_closing_slicer_ends_a_download(held_download, setup, fake_slicer, monkeypatch, tmp_path):
    messages = []
    monkeypatch.setattr(setup, "_showMessage", messages.append)
    setup.cleanup()
    assert is_gone(held_download, 0.1) and own_model_files(tmp_path) == [".downloads"]
    fake_slicer.process_events(0.1)
    assert messages == []


@pytest.mark.parametrize("address", ["", "https://example.org/model.zip"])
def test_nothing_is_downloaded_from_an_address_without_a_checksum(setup, fake_slicer, address):
    fake_slicer.dialogs.answer(address)
    setup.ui.downloadButton.click()
    assert setup.ui.downloadButton.text == "Download model..."
    assert ("SHA-256" in setup.ui.setupMessageLabel.text) == bool(address)


@pytest.fixture
def without_openvino(setup, fake_slicer, monkeypatch) -> Any:
    """The Setup section on a computer without a GPU, where OpenVINO can be installed."""
    monkeypatch.setattr("shutil.which", lambda name, *rest: None)
    monkeypatch.setattr("sys.platform", "linux")
    fake_slicer.packages.hide("openvino")
    setup.update()
    return setup


def test_openvino_is_offered_on_a_cpu_and_installed_alone_after_a_question(without_openvino, fake_slicer):
    ui = without_openvino.ui
    assert "Optional" in ui.openVINOLabel.text and not ui.installOpenVINOButton.isHidden()
    fake_slicer.dialogs.answer(True)
    ui.installOpenVINOButton.click()
    assert fake_slicer.packages.installed == ["--no-deps openvino>=2025.0"]
    assert "was installed" in ui.setupMessageLabel.text
    assert ui.installOpenVINOButton.isHidden() and "is installed" in ui.openVINOLabel.text


def test_slicer_5_10_installs_openvino_with_its_older_function(without_openvino, fake_slicer, monkeypatch):
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    fake_slicer.dialogs.answer(True)
    without_openvino.ui.installOpenVINOButton.click()
    assert fake_slicer.packages.installed == ["--no-deps openvino>=2025.0"]


def test_declined_openvino_is_not_offered_again(without_openvino, fake_slicer):
    ui = without_openvino.ui
    fake_slicer.dialogs.answer(False)
    ui.installOpenVINOButton.click()
    assert fake_slicer.packages.installed == []
    command = "slicer.util.pip_install('--no-deps openvino>=2025.0')"
    assert command in html.unescape(ui.setupMessageLabel.text)
    without_openvino.update()
    assert ui.installOpenVINOButton.isHidden() and ui.openVINOLabel.isHidden()


def test_a_failed_installation_of_openvino_is_reported_and_it_is_still_offered(without_openvino, fake_slicer):
    ui = without_openvino.ui
    fake_slicer.packages.fails = True
    fake_slicer.dialogs.answer(True)
    ui.installOpenVINOButton.click()
    message = ui.setupMessageLabel.text
    assert "could not be installed" in message and "works without OpenVINO" in message
    assert not ui.installOpenVINOButton.isHidden()


@pytest.mark.parametrize("reason", ["a GPU", "an Apple GPU", "no PyTorch", "testing"])
def test_openvino_is_not_offered_if_it_would_not_help(without_openvino, fake_slicer, monkeypatch, reason):
    ui = without_openvino.ui
    if reason == "a GPU":
        monkeypatch.setattr("shutil.which", lambda name, *rest: f"/usr/bin/{name}")
    elif reason == "an Apple GPU":
        monkeypatch.setattr("sys.platform", "darwin")
        monkeypatch.setattr("platform.machine", lambda: "arm64")
    elif reason == "no PyTorch":
        fake_slicer.torch.is_installed = False
    else:
        fake_slicer.app._is_testing = True
        ui.installOpenVINOButton.click()
        assert "testing mode" in ui.setupMessageLabel.text and fake_slicer.packages.installed == []
        return
    without_openvino.update()
    assert ui.installOpenVINOButton.isHidden() and ui.openVINOLabel.isHidden()


def test_setup_counts_as_complete_without_openvino(without_openvino, small_bundle, monkeypatch):
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    without_openvino.update()
    assert without_openvino.isComplete()
