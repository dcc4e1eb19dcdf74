"""Stand-ins of what installs Python packages: they record what is asked, and install nothing."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class Packages:
    """``missing`` names distributions that the module shall believe absent until they are installed."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.installed: list[str] = []
        self.declined = False

    def clear(self) -> None:
        self.missing.clear()
        self.installed.clear()
        self.declined = False

    def check(self, requirements: Any) -> bool:
        return not any(self._lacks(requirement) for requirement in _listed(requirements))

    def install(self, requirements: Any, **keywords: Any) -> None:
        for requirement in _listed(requirements):
            self.installed.append(requirement)
            self.missing.discard(_name(requirement))

    def ensure(self, requirements: Any, **keywords: Any) -> None:
        absent = [requirement for requirement in _listed(requirements) if self._lacks(requirement)]
        if absent and self.declined:
            raise RuntimeError("User declined package installation")
        self.install(absent)

    def _lacks(self, requirement: str) -> bool:
        name = _name(requirement)
        if name in self.missing:
            return True
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return name not in map(_name, self.installed)
        return False

    def module(self) -> ModuleType:
        """``slicer.packaging`` of Slicer 5.12."""
        module = ModuleType("slicer.packaging")
        module.pip_check = self.check
        module.pip_ensure = self.ensure
        module.pip_install = self.install
        module.load_requirements = load_requirements
        return module


class Torch:
    """The PyTorch extension: absent, present without torch, or ready."""

    def __init__(self) -> None:
        self._hidden: dict[str, ModuleType] = {}
        self.clear()

    def clear(self) -> None:
        self.has_extension = True
        self.install_fails = False
        self.is_installed = True

    @property
    def is_installed(self) -> bool:
        return sys.modules.get("torch", self) is not None

    @is_installed.setter
    def is_installed(self, installed: bool) -> None:
        """Without torch, Python's import system does not find it, as in a fresh Slicer."""
        if installed and not self.is_installed:
            sys.modules.pop("torch")
            sys.modules.update(self._hidden)
        elif not installed and self.is_installed:
            self._hidden = {name: sys.modules[name] for name in ("torch",) if name in sys.modules}
            sys.modules["torch"] = None  # type: ignore[assignment]

    def module(self) -> ModuleType:
        """``PyTorchUtils`` as the extension brings it."""
        told = self

        class PyTorchUtilsLogic:
            def torchInstalled(self) -> bool:
                return told.is_installed

            def installTorch(self, askConfirmation: bool = False, **keywords: Any) -> Any:
                if told.install_fails:
                    return None
                told.is_installed = True
                return self.torch

            @property
            def torch(self) -> Any:
                import torch

                return torch

        module = ModuleType("PyTorchUtils")
        module.PyTorchUtilsLogic = PyTorchUtilsLogic
        module.__spec__ = ModuleSpec("PyTorchUtils", None)
        return module


def load_requirements(path: Any) -> list[str]:
    """Lines of a requirements file, without comments and options."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def _listed(requirements: Any) -> Iterable[str]:
    return [requirements] if isinstance(requirements, str) else [str(requirement) for requirement in requirements]


def _name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement.strip(), maxsplit=1)[0].lower()
