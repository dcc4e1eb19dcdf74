"""Who may import whom: the house of the design, read from the source of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "DCASegmentationLib"
LIBRARY = Path(__file__).parents[1] / "DCASegmentation" / PACKAGE
FILES = sorted(LIBRARY.rglob("*.py"))

# For each part: the other parts of the package, and the libraries outside of Python's own, that it may import anywhere
# in its files. A part is a folder, or a file at the top.
SLICER = {"slicer", "vtk"}
RULES: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "organs": (set(), set()),
    "home": (set(), set()),
    "method": ({"errors", "organs"}, {"torch"}),
    "partials": (set(), set()),
    "json_reading": (set(), set()),
    "lock": ({"errors"}, set()),
    "worker_protocol": (set(), set()),
    "review_file": ({"errors", "json_reading"}, set()),
    "imaging": ({"errors", "organs", "partials", "home"}, {"numpy", "SimpleITK"}),
    "phantom": ({"errors", "organs", "imaging"}, {"numpy", "SimpleITK"}),
    "synthesis": ({"errors", "json_reading", "organs", "imaging", "phantom"}, {"torch", "numpy", "SimpleITK"}),
    "bundle": (
        {"errors", "json_reading", "organs", "method", "imaging", "worker_protocol", "home"},
        {"torch", "certifi"},
    ),
    "inference": (
        {"errors", "json_reading", "organs", "review_file", "method", "imaging", "home"},
        {"torch", "numpy", "SimpleITK", "openvino"},
    ),
    "case_folder": ({"errors", "imaging", "json_reading"}, {"SimpleITK"}),
    "job": ({"errors", "organs", "review_file", "imaging", "inference", "bundle"}, {"SimpleITK"}),
    "interaction": ({"errors", "imaging", "method", "bundle"}, {"numpy", "SimpleITK", "torch"}),
    "correction": (
        {"errors", "organs", "imaging", "inference", "interaction", "job"},
        {"numpy", "SimpleITK"},
    ),
    "worker": (
        {"errors", "partials", "worker_protocol", "imaging", "inference", "bundle", "job"},
        set(),
    ),
    "dicom": ({"errors", "organs", "imaging", "partials"}, {"numpy", "SimpleITK", "pydicom", "highdicom"}),
    "cohort": (
        {
            *("errors", "organs", "partials", "review_file", "imaging", "inference", "bundle", "job", "figures"),
            *("dicom", "json_reading", "lock"),
        },
        {"numpy", "SimpleITK", "torch", "distributed", "dask", "tornado", "psutil", "jinja2", "PIL"},
    ),
    "training": (
        {
            *("errors", "json_reading", "organs", "partials", "lock", "case_folder", "method", "imaging", "phantom"),
            *("bundle", "synthesis", "interaction"),
        },
        {"torch", "monai", "numpy", "SimpleITK"},
    ),
    "evaluation": (
        {
            *("errors", "json_reading", "organs", "review_file", "method", "imaging", "phantom", "bundle", "inference"),
            *("training", "figures", "partials", "interaction"),
        },
        {"torch", "monai", "numpy", "SimpleITK", "matplotlib", "sklearn"},
    ),
    "benchmark": (
        {
            *("errors", "organs", "partials", "worker_protocol", "method", "imaging", "phantom", "bundle", "inference"),
            *("job", "training", "evaluation", "scene"),
        },
        {
            *("torch", "monai", "numpy", "SimpleITK", "matplotlib"),
            # Other projects' programs, and what they are made of.
            *("nnunetv2", "nibabel", "scipy"),
        },
    ),
    "figures": ({"errors", "organs"}, {"numpy", "SimpleITK", "matplotlib"}),
    "corrected_case_job": ({"errors", "json_reading", "organs", "case_folder", "training"}, {"SimpleITK"}),
    "scene": (
        {
            *("errors", "json_reading", "organs", "case_folder", "review_file", "imaging", "figures"),
            "corrected_case_job",
        },
        # SampleData is a module of Slicer.
        {"numpy", "SimpleITK", "SampleData", *SLICER},
    ),
    "panels": (
        {
            *("errors", "organs", "review_file", "figures", "scene", "partials", "worker_protocol", "bundle"),
            *("imaging", "corrected_case_job"),
        },
        # PyTorchUtils is the module of Slicer's PyTorch extension.
        {"qt", "ctk", "numpy", "PyTorchUtils", *SLICER},
    ),
    "self_test": (
        {"errors", "organs", "review_file", "phantom", "bundle", "scene", "panels"},
        {"SimpleITK", *SLICER},
    ),
    "cli": (
        {
            *("errors", "organs", "review_file", "method", "imaging", "phantom", "bundle", "inference", "job"),
            *("case_folder", "training", "synthesis", "evaluation", "benchmark", "figures", "scene", "dicom", "cohort"),
            *("home", "lock", "interaction", "correction"),
        },
        {"typer", "rich", "torch", "numpy", "SimpleITK", "distributed"},
    ),
}

# What is loaded inside Slicer's own process: the heavy libraries must not be loaded along with it.
LOADED_BY_SLICER = {
    *("errors", "organs", "home"),
    *("review_file", "partials", "worker_protocol", "imaging", "scene", "figures", "panels", ""),
    *("json_reading", "case_folder", "corrected_case_job", "self_test", "phantom"),
}
HEAVY = {"torch", "monai", "ignite"}


def part_of(path: Path) -> str:
    """The part a file belongs to: its folder, or its own name at the top; "" is the package's ``__init__``."""
    first = path.relative_to(LIBRARY).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(path: Path, nodes: list[ast.stmt] | None = None) -> set[str]:
    """Full names of the modules that a file imports, relative imports resolved; of ``nodes`` only, where given."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = [PACKAGE, *path.relative_to(LIBRARY).parent.parts]
    found: set[str] = set()
    for top in tree.body if nodes is None else nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                # "from . import segment" imports the module segment.
                found |= {f"{module}.{alias.name}" for alias in node.names} if not node.module else {module}
    return found


def at_file_scope(path: Path) -> list[ast.stmt]:
    """The statements that run when the file is imported: none inside functions or TYPE_CHECKING blocks."""

    def runs(body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.append(node)
            elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                found += runs(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "orelse", "finalbody", "handlers"):
                    inner = getattr(node, field, [])
                    found += runs([s for s in inner if isinstance(s, ast.stmt)])
                    found += [s for h in inner if isinstance(h, ast.ExceptHandler) for s in runs(h.body)]
        return found

    return runs(ast.parse(path.read_text(encoding="utf-8")).body)


def parts_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imported_modules(path))
    return {name[1] for name in names if name[0] == PACKAGE and len(name) > 1} - {part_of(path)}


def libraries_imported(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - {PACKAGE, "__future__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_file_imports_only_what_its_part_may_know(path):
    part = part_of(path)
    if part == "":
        assert imported_modules(path) <= {"__future__"}
        return
    assert part in RULES, f"{part} has no rule: say in RULES whom it may import"
    parts, libraries = RULES[part]
    assert parts_imported(path) <= parts
    assert libraries_imported(imported_modules(path)) <= libraries


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) in LOADED_BY_SLICER], ids=lambda path: path.stem)
def test_what_slicer_loads_imports_no_heavy_library_at_file_scope(path):
    assert not libraries_imported(imported_modules(path, at_file_scope(path))) & HEAVY


def test_the_parts_depend_on_each_other_in_one_direction():
    uses: dict[str, set[str]] = {}
    for path in FILES:
        uses.setdefault(part_of(path), set()).update(parts_imported(path))
    left = {part: set(used) for part, used in uses.items()}
    while left:
        free = [part for part, used in left.items() if not used & set(left)]
        assert free, f"these parts import each other in a circle: {sorted(left)}"
        for part in free:
            del left[part]


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=lambda path: path.parent.name)
def test_package_files_hold_no_code_but_the_entry_of_the_command_line(path):
    if part_of(path) == "cli":
        return
    code = [ast.unparse(node) for node in ast.parse(path.read_text(encoding="utf-8")).body]
    allowed = ("'", '"', "from __future__ import", "__version__ =")
    assert [line for line in code if not line.startswith(allowed)] == []


@pytest.mark.parametrize("rule_breaker", ["import vtk", "from ..scene import maps", "def f():\n    import slicer"])
def test_the_reading_of_imports_sees_every_kind(rule_breaker, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LIBRARY", tmp_path)
    path = tmp_path / "imaging" / "reading.py"
    path.parent.mkdir()
    path.write_text(rule_breaker, encoding="utf-8")
    parts, libraries = RULES["imaging"]
    assert not (parts_imported(path) <= parts and libraries_imported(imported_modules(path)) <= libraries)


def test_the_panel_and_its_jobs_load_without_torch():
    """File scopes are followed all the way: what a panel imports may import something itself."""
    reached: set[Path] = set()
    waiting = [path for path in FILES if part_of(path) in LOADED_BY_SLICER]
    waiting += [LIBRARY / "training" / name for name in ("corrected_cases.py", "unlabelled_cts.py")]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        names = imported_modules(path, at_file_scope(path))
        assert not libraries_imported(names) & HEAVY, path
        files = (LIBRARY.parent / Path(*name.split(".")) for name in names if name.startswith(f"{PACKAGE}."))
        waiting += [each for file in files for each in (file.with_suffix(".py"), file / "__init__.py") if each.exists()]
    assert len(reached) > 100


def test_the_figures_of_slicer_load_without_torch():
    script = (
        "import sys, DCASegmentationLib.figures.case_picture, DCASegmentationLib.scene.picture;"
        "print([name for name in ('torch', 'monai', 'typer') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
