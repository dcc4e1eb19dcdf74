"""Installs the stand-ins where Python code expects Slicer's own modules and classes, and removes them again."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
from PySide6 import QtCore, QtWidgets

from DCASegmentationLib.scene.headless import boot
from fake_slicer import (
    dicom_dialog,
    mrml_widgets,
    node_combo_box,
    parameter_node,
    scripted_module,
    segmentation_widgets,
    view_widgets,
)
from fake_slicer.application import qSlicerApplication
from fake_slicer.dialogs import Dialogs
from fake_slicer.log_watch import LogWatch
from fake_slicer.pip import Packages, Torch
from fake_slicer.pythonqt import KEPT, patch
from fake_slicer.qt_modules import QtModule, ctk_module, stand_ins_of
from fake_slicer.sample_data import SampleData
from fake_slicer.scripted_module import qSlicerScriptedLoadableModule
from fake_slicer.ui_loader import UiLoader

MODULE_FILE = Path(__file__).parents[2] / "DCASegmentation" / "DCASegmentation.py"
_ABSENT = object()
_SLICER_SOURCE = "DCA_SLICER_SOURCE"
_TURNS = 30


@cache
def _slicers_own(name: str, source: Path) -> ModuleType:
    """The package ``name`` of a checkout of Slicer, imported once, as the module imports it once.

    It keeps the modules that it was imported with, such as ``ctk``.
    """
    package = source.joinpath("Base", "Python", *name.split("."))
    spec = importlib.util.spec_from_file_location(
        name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None or not package.is_dir():
        raise ImportError(f"{_SLICER_SOURCE} does not name a checkout of Slicer: there is no {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class FakeSlicer:
    """Slicer as the module sees it.

    Tests script the user and the computer through ``dialogs``, ``packages``, ``torch``, and ``sample_data``.
    """

    def __init__(self, folder: Path) -> None:
        self._qt_application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
        patch()
        boot()
        self.dialogs, self.packages, self.torch = Dialogs(), Packages(), Torch()
        self.status_messages: list[str] = []
        self.slot_errors: list[str] = []
        self.sample_data = SampleData()
        self.log = LogWatch()
        self.app = qSlicerApplication(folder)
        crosshair = slicer.vtkMRMLCrosshairNode()  # always present in Slicer's scene
        crosshair.SetSingletonTag("default")
        slicer.mrmlScene.AddNode(crosshair)
        self.stand_ins = {
            name: cls
            for module in (dicom_dialog, mrml_widgets, node_combo_box, segmentation_widgets, view_widgets)
            for name, cls in stand_ins_of(module).items()
        }
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def install(self) -> None:
        """Make ``import qt``, ``slicer.app``, and everything else that the module uses available."""
        ctk = ctk_module()
        widgets = {**self.stand_ins, **stand_ins_of(sys.modules["fake_slicer.ctk_widgets"])}
        # One for all files, because Qt looks for its plugins on the disk for each new loader.
        loader = UiLoader(widgets)
        qt = QtModule(
            QUiLoader=lambda: loader,
            QFileDialog=self.dialogs.file_dialog(),
            QInputDialog=self.dialogs.input_dialog(),
        )
        i18n = ModuleType("slicer.i18n")
        i18n.tr = lambda text, *context: text
        i18n.translate = lambda context, text, *arguments: text
        modules: dict[str, ModuleType | None] = {
            "qt": qt,
            "ctk": ctk,
            "slicer.ScriptedLoadableModule": scripted_module,
            "slicer.i18n": i18n,
            "slicer.packaging": self.packages.module(),
            "PyTorchUtils": self.torch.module(),
            "SampleData": self.sample_data.module(),
        }
        for name, module in modules.items():
            self._put(sys.modules, name, module)
            if name.startswith("slicer."):
                self._put(vars(slicer), name.removeprefix("slicer."), module)
        self._install_parameter_node_wrapper()
        self._put(vars(slicer), "app", self.app)
        self._put(vars(slicer), "qSlicerScriptedLoadableModule", qSlicerScriptedLoadableModule)
        for name, cls in self.stand_ins.items():
            self._put(vars(slicer), name, cls)
        functions = {
            **self.dialogs.util_functions(),
            "showStatusMessage": lambda message, duration=0: self.status_messages.append(message),
            "mainWindow": lambda: None,
            "startupEnvironment": self.app.startupEnvironment,
            "pip_install": self.packages.install_5_10,
        }
        for name, function in functions.items():
            self._put(vars(slicer.util), name, function)
        self._excepthook, sys.excepthook = sys.excepthook, self._record_slot_error

    def _install_parameter_node_wrapper(self) -> None:
        """Install the stand-in, or Slicer's own package if DCA_SLICER_SOURCE names a checkout of Slicer.

        slicer-core does not contain the package, which needs Slicer's Qt and CTK.
        """
        name, source = "slicer.parameterNodeWrapper", os.environ.get(_SLICER_SOURCE)
        if source:
            # It names all widgets that it can bind; those without a stand-in become classes without instances.
            for owner in (slicer, sys.modules["ctk"]):
                self._put(vars(owner), "__getattr__", partial(self._put_class, vars(owner)))
        module = _slicers_own(name, Path(source)) if source else parameter_node
        self._put(sys.modules, name, module)
        self._put(vars(slicer), "parameterNodeWrapper", module)

    def _put_class(self, names: dict[str, Any], name: str) -> type:
        if name.startswith("_"):
            raise AttributeError(name)
        self._put(names, name, type(name, (), {}))
        return names[name]

    def uninstall(self) -> None:
        """Restore Python's previous state."""
        self.torch.clear()
        self.packages.clear()
        sys.excepthook = self._excepthook
        while self._before:
            names, name, value = self._before.pop()
            if value is _ABSENT:
                names.pop(name, None)
            else:
                names[name] = value

    def clear(self) -> None:
        """Reset to an empty scene and the standard layout, without settings, scripted answers, or records."""
        slicer.mrmlScene.Clear(0)
        self.app.settings().clear()
        self.app._is_testing = False
        self.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self.process_events()
        scripted = (self.dialogs, self.packages, self.torch, self.sample_data)
        for record in (*scripted, self.status_messages, self.slot_errors):
            record.clear()
        self.log.clear()
        KEPT.clear()

    def load_module(self, path: Path = MODULE_FILE) -> ModuleType:
        """Import a scripted module's file as Slicer does, and create its module object."""
        name = path.stem
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(str(path))
        module = importlib.util.module_from_spec(spec)
        self._put(sys.modules, name, module)
        spec.loader.exec_module(module)
        parent = qSlicerScriptedLoadableModule(name, path)
        self._put(vars(slicer.modules), name.lower(), parent)
        self._put(vars(slicer.modules), f"{name}Instance", getattr(module, name)(parent))
        return module

    def make_widget(self, module: ModuleType) -> Any:
        """Open the module's panel for the first time: set it up with the scene, enter it, and show it."""
        name = module.__name__
        top = slicer.qSlicerScriptedLoadableModuleWidget()
        top.setLayout(QtWidgets.QVBoxLayout())
        top.setMRMLScene(slicer.mrmlScene)
        widget = getattr(module, f"{name}Widget")(top)
        top._state.python_widget, top._state.module_name = widget, name
        getattr(slicer.modules, name.lower())._widget = top
        self._put(vars(slicer.modules), f"{name}Widget", widget)
        widget.setup()
        top.resize(400, 800)
        top.show()
        if hasattr(widget, "enter"):
            widget.enter()
        self.process_events()
        return widget

    def finish_startup(self) -> None:
        """Finish Slicer's startup: call the receivers of startupCompleted()."""
        receivers, self.app._at_startup = self.app._at_startup, []
        for receiver in receivers:
            receiver()

    def offered_to_save(self) -> list[str]:
        """The names of the nodes in Slicer's Save dialog: data nodes that are not hidden from editors."""
        nodes = slicer.util.getNodesByClass("vtkMRMLStorableNode")
        return [node.GetName() for node in nodes if not node.GetHideFromEditors() and node.GetSaveWithScene()]

    def process_events(self, seconds: float = 0.0) -> None:
        """Process pending Qt events, for at least ``seconds``."""
        end = time.monotonic() + seconds
        # The module works in steps, each of which schedules the next one.
        for _turn in range(_TURNS):
            self._qt_application.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
        while True:
            self._qt_application.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
            self._qt_application.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
            if time.monotonic() >= end:
                return
            time.sleep(0.005)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Run Qt's event loop until ``condition()`` is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"The condition is still false after {seconds} s; slots raised: {self.slot_errors}")
            self.process_events()
            time.sleep(0.005)

    def run_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Run Qt's event loop until ``condition()`` is true, as Slicer does: it sleeps while nothing happens.

        ``wait_for`` polls, which uses a core of its own. Raises TimeoutError.
        """
        loop, timer = QtCore.QEventLoop(), QtCore.QTimer()
        end = time.monotonic() + seconds
        timer.setInterval(20)
        timer.timeout.connect(lambda: loop.quit() if condition() or time.monotonic() > end else None)
        timer.start()
        loop.exec()
        timer.stop()
        if not condition():
            raise TimeoutError(f"The condition is still false after {seconds} s; slots raised: {self.slot_errors}")

    def _put(self, names: dict[str, Any], name: str, value: Any) -> None:
        self._before.append((names, name, names.get(name, _ABSENT)))
        names[name] = value

    def _record_slot_error(self, error_type: type, error: BaseException, trace: Any) -> None:
        # With the call path: for an error that does not occur again, this is all there is.
        frames = traceback.extract_tb(trace)[-8:]
        path = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        self.slot_errors.append(f"{error_type.__name__}: {error} ({path})")
        self._excepthook(error_type, error, trace)


@contextmanager
def installed(fake: FakeSlicer) -> Iterator[FakeSlicer]:
    """Within the context, the fake Slicer is installed, with an empty scene at the start.

    Garbage is collected only here, in the main thread. Other tests of the process leave threads behind (those of Dask),
    and a collection that starts in one of them would delete Qt objects outside their thread, which corrupts memory.
    """
    collected = gc.isenabled()
    gc.disable()
    fake.install()
    try:
        with fake.log.watching():
            fake.clear()
            yield fake
    finally:
        slicer.mrmlScene.Clear(0)
        fake.uninstall()
        gc.collect()
        # What is left is there to stay: libraries, and objects of the session. To search it again after each test took
        # longer than most tests.
        gc.freeze()
        if collected:
            gc.enable()
