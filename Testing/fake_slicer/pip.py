"""Stand-ins for installing Python packages: they record the requests and install nothing."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Packages:
    """The packages in the fake Slicer's Python.

    ``hide(name)`` makes a package look absent until it is installed; ``fails`` makes pip fail; ``installed`` lists the
    arguments passed to pip.
    """

    def __init__(self) -> None:
        self.installed: list[str] = []
        self.fails = False
        self._hidden: dict[str, ModuleType | None] = {}

    def clear(self) -> None:
        self.installed.clear()
        self.fails = False
        for name in list(self._hidden):
            self._show(name)

    def hide(self, name: str) -> None:
        """Make Python's import system no longer find the package."""
        self._hidden.setdefault(name, sys.modules.get(name))
        sys.modules[name] = None  # type: ignore[assignment]

    def _show(self, name: str) -> None:
        module = self._hidden.pop(name)
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module

    def install(self, requirements: Any, requester: str | None = None) -> None:
        """``pip_install`` of Slicer 5.12, which shows its progress with the name of ``requester``."""
        if self.fails:
            raise subprocess.CalledProcessError(1, "pip install")
        self.installed.append(requirements)
        for argument in shlex.split(requirements):
            if _name(argument) in self._hidden:
                self._show(_name(argument))

    def install_5_10(self, requirements: Any) -> None:
        """``slicer.util.pip_install`` of Slicer 5.10."""
        self.install(requirements)

    def module(self) -> ModuleType:
        """``slicer.packaging`` of Slicer 5.12."""
        module = ModuleType("slicer.packaging")
        module.pip_install = self.install
        return module


class Torch:
    """The PyTorch extension: absent, present without torch, or present with torch."""

    def __init__(self) -> None:
        self._hidden: dict[str, ModuleType] = {}
        self.clear()

    def clear(self) -> None:
        self.has_extension = True
        self.install_fails = False
        self.is_installed = True
        # The versions that were asked for.
        self.requirements: list[str | None] = []

    @property
    def is_installed(self) -> bool:
        return sys.modules.get("torch", self) is not None

    @is_installed.setter
    def is_installed(self, installed: bool) -> None:
        """Set whether Python's import system finds torch; in a new Slicer it does not."""
        if installed and not self.is_installed:
            sys.modules.pop("torch")
            sys.modules.update(self._hidden)
        elif not installed and self.is_installed:
            self._hidden = {name: sys.modules[name] for name in ("torch",) if name in sys.modules}
            sys.modules["torch"] = None  # type: ignore[assignment]

    def module(self) -> ModuleType:
        """The extension's module ``PyTorchUtils``."""
        state = self

        class PyTorchUtilsLogic:
            def torchInstalled(self) -> bool:
                return state.is_installed

            def installTorch(
                self,
                askConfirmation: bool = False,
                forceComputationBackend: str | None = None,
                torchVersionRequirement: str | None = None,
                torchvisionVersionRequirement: str | None = None,
            ) -> Any:
                state.requirements.append(torchVersionRequirement)
                if state.install_fails:
                    return None
                state.is_installed = True
                return self.torch

            @property
            def torch(self) -> Any:
                import torch

                return torch

        module = ModuleType("PyTorchUtils")
        module.PyTorchUtilsLogic = PyTorchUtilsLogic
        module.__spec__ = ModuleSpec("PyTorchUtils", None)
        return module


def _name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement.strip(), maxsplit=1)[0].lower()
