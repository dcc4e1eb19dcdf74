"""The documents say what is true: links, commands, options, packages, files and variables exist, and pages made from
the program are up to date."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from make_command_reference import PAGE, commands, page, root

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "Resources/Docs"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS = sorted([*TOP, *DOCS.rglob("*.md")])
# Release notes name what is gone, too.
PRESENT = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
SOURCES = sorted([*(ROOT / "DCASegmentation").rglob("*.py"), *(ROOT / "Testing").rglob("*.py")])

# Packages that a command in the documents may ask a package index for, besides this project's extras.
INDEX_PACKAGES = {"dask-jobqueue"}

# Menus, modules and buttons of Slicer itself, of which the pages on the module speak.
SLICERS_OWN = {"DCM", "Extensions Manager", "PyTorch", "Transforms", "Reload"}
SLICERS_MENUS = ("View", "Edit", "Segmentation", "Sample Data")

_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)*)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
present = pytest.mark.parametrize("document", PRESENT, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def code_lines(text: str) -> list[str]:
    """Lines of code blocks, indented or fenced; a line that ends in a backslash is joined with the next."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or (line.startswith("    ") and not line.lstrip().startswith(("- ", "* "))):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def prose(text: str) -> str:
    """The text without its code blocks."""
    kept, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            kept.append(line)
    return "\n".join(kept)


def inline_code(text: str) -> list[str]:
    return [" ".join(code.split()) for code in _CODE.findall(prose(text))]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ +(.+)$", prose(text_of(document)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def extras() -> set[str]:
    """The optional dependencies of pyproject.toml."""
    section = PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, flags=re.MULTILINE))


@cache
def sources() -> str:
    """All Python code, of the program and of the tests."""
    return "".join(map(text_of, SOURCES))


@cache
def scripts() -> str:
    """The code of the scripts in Testing."""
    return "".join(text_of(path) for path in (ROOT / "Testing").rglob("*.py") if not path.name.startswith("test_"))


@cache
def panel_words() -> str:
    """The code and the .ui files of the panel, without the marks of shortcuts."""
    files = [path for kind in ("py", "ui") for path in (ROOT / "DCASegmentation").rglob(f"*.{kind}")]
    return "".join(map(text_of, files)).replace("&amp;", "").replace("&", "")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


@by_name
def test_links_resolve(document):
    broken = []
    text = text_of(document)
    for target in [*_LINK.findall(prose(text)), *re.findall(r'<img [^>]*src="([^"]+)"', text)]:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = document if not path else document.parent / path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


def test_every_document_is_linked_from_the_list_of_documents():
    index = DOCS / "README.md"
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in _LINK.findall(text_of(index))}
    assert not {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path != index} - {
        path.relative_to(DOCS).as_posix() for path in linked if path.is_relative_to(DOCS)
    }


def test_the_page_of_commands_is_the_programs():
    assert text_of(PAGE) == page(), "Run: python Testing/make_command_reference.py"


def test_the_cards_of_the_shipped_models_are_the_programs():
    from dcaseg.models.bundle import Bundle
    from dcaseg.models.model_card import format_model_card
    from dcaseg.models.store import find_shipped_bundles

    folders = find_shipped_bundles()
    assert folders
    for folder in folders:
        assert text_of(folder / "docs/README.md") == format_model_card(Bundle.load(folder).metadata), folder.name


COMMANDS: dict[str, Any] = dict(commands())
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def wrong_with(line: str) -> str | None:
    """What is wrong with a ``dca`` command of a document: no such command, or no such option."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        words = line.split()
    words = words[words.index("dca") + 1 :]
    if not words or words[0].startswith("-") or words[0].isupper():
        return None
    names = [" ".join(words[:count]) for count in (2, 1)]
    if words[0] in GROUPS and (len(words) == 1 or "|" in words[1]):
        # A group by itself, or the choice among its commands: `dca dataset amos|synapse`.
        chosen = [f"{words[0]} {name}" for name in words[1].split("|")] if len(words) > 1 else []
        return next((f"dca {name}: no such command" for name in chosen if name not in COMMANDS), None)
    name = next((name for name in names if name in COMMANDS), None)
    if name is None:
        return f"dca {names[0]}: no such command"
    known = {"--help", "-h"}
    known |= {opt for each in (*root().params, *COMMANDS[name].params) for opt in (*each.opts, *each.secondary_opts)}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return next((f"dca {name}: no option {option}" for option in options if option not in known), None)


@present
def test_commands_and_their_options_exist(document):
    text = text_of(document)
    lines = [line for line in code_lines(text) if re.match(r"([A-Z_]+=\S+ )*dca ", line)]
    lines += [code for code in inline_code(text) if re.match(r"([A-Z_]+=\S+ )*dca ", code)]
    assert not [problem for line in lines if (problem := wrong_with(line))]


@present
def test_options_named_alone_exist(document):
    """An option in running text (`--review`) is one of some command of ours or of a script of Testing."""
    options = [each for command in (root(), *COMMANDS.values()) for each in command.params]
    known = {name for each in options for name in (*each.opts, *each.secondary_opts)}
    alone = {code.split()[0].partition("=")[0] for code in inline_code(text_of(document)) if re.match(r"--[a-z]", code)}
    # Dask's own, of which the pages on clusters speak.
    alone -= {"--scheduler-file", "--no-dashboard", "--help"}
    assert not {option for option in alone if option not in known and f'"{option}"' not in scripts()}


@present
def test_scripts_exist(document):
    text = text_of(document)
    named = set()
    for line in [*code_lines(text), *inline_code(text)]:
        named |= set(re.findall(r"(?:^|\s)(Testing/[\w/]+(?:\.py)?)(?=\s|$)", line))
        named |= {f"{module.replace('.', '/')}" for module in re.findall(r"python -m (Testing[\w.]*)", line)}
        named |= {f"DCASegmentation/{module.replace('.', '/')}" for module in re.findall(r"-m (dcaseg[\w.]*)", line)}
    assert not {name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()}


@present
def test_packages_exist(document):
    """Nothing is installed from a package index that no one has put there."""
    for line in [*code_lines(text_of(document)), *inline_code(text_of(document))]:
        for rest in re.findall(r"pip install (.+)", line):
            for word in shlex.split(rest, comments=True):
                if word.startswith(".["):
                    assert set(word[2:-1].split(",")) <= extras(), line
                else:
                    assert word in {"-e", "."} | INDEX_PACKAGES or word.endswith(".whl"), line


@present
def test_environment_variables_exist(document):
    named = set(re.findall(r"\bDCA_[A-Z_]+\b", text_of(document)))
    assert not {name for name in named if name not in sources()}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "Resources/Docs/explanation/design.md"])
def test_files_of_the_tree_exist(name):
    """Paths in backticks are of the repository, of its module's folder, or of the library."""
    roots = (ROOT, ROOT / "DCASegmentation", ROOT / "DCASegmentation/dcaseg")
    path = re.compile(r"[\w.\-]+(/[\w.\-]*)+|[\w\-]+\.py")
    named = {code for code in inline_code(text_of(ROOT / name)) if path.fullmatch(code)}
    assert named
    assert not {each for each in named if not any((root / each).exists() for root in roots)}


def test_documents_that_the_code_names_exist():
    named = {name for path in SOURCES for name in re.findall(r"Resources/Docs/[\w/\-]+\.md", text_of(path))}
    assert named
    assert not {name for name in named if not (ROOT / name).exists()}


@pytest.mark.parametrize(
    "name", ["README.md", *(f"Resources/Docs/slicer/{path.name}" for path in DOCS.glob("slicer/*"))]
)
def test_the_panels_words_are_the_panels(name):
    """What a document sets in bold or italics is written on the panel: a button, a section, a choice."""
    text = text_of(ROOT / name)
    section = text if name != "README.md" else text.partition("## In 3D Slicer")[2].partition("\n## ")[0]
    named = set()
    for words in re.findall(r"\*{1,2}([^*\n]+(?:\n[^*\n]+)?)\*{1,2}", prose(section)):
        parts = " ".join(words.split()).split(" / ")
        named |= set(parts) if parts[0] not in SLICERS_MENUS else set()
    assert named
    assert not {words for words in named - SLICERS_OWN if words.rstrip(".") not in panel_words()}


def test_settings_are_complete():
    """The page of settings has every environment variable, backend and extra of the program."""
    from dcaseg.inference.backends.selection import CHOICES

    text = text_of(DOCS / "reference/settings.md")
    library = "".join(text_of(path) for path in (ROOT / "DCASegmentation/dcaseg").rglob("*.py"))
    wanted = {*re.findall(r'"(DCA_[A-Z_]+)"', library), *CHOICES, *extras()}
    assert not {name for name in wanted if f"`{name}`" not in text}


def test_the_page_of_files_has_the_files_of_a_result(dca, small_bundle, coarse_phantom, tmp_path):
    out = tmp_path / "result"
    options = ("--bundle", small_bundle, "--review", "--attention-levels", "1,2,3,4", "--device", "cpu")
    assert dca("segment", coarse_phantom / "ct.nii.gz", "-o", out, *options).code == 0
    section = text_of(DOCS / "reference/files.md").partition("## A cohort")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    written = {re.sub(r"_(head|medium|tail)_level[1-4]", "_<expert>_level<1-4>", path.name) for path in out.iterdir()}
    # A DICOM SEG needs a CT that is DICOM, a scene Slicer's libraries; the others are made on request.
    others = {"segmentation.dcm", "segmentation.seg.nrrd", "scene.mrb", "picture.png", "report.html"}
    assert documented - others <= written
    assert written <= documented


def test_the_threat_models_tests_exist():
    named = set(re.findall(r"\btest_\w+", text_of(DOCS / "explanation/threat-model.md")))
    assert not {name for name in named if not (ROOT / f"Testing/{name}.py").exists()}


def test_versions_agree():
    version = re.findall(r'^version = "(.+)"', PYPROJECT, flags=re.MULTILINE)[0]
    assert re.search(rf"^version: {re.escape(version)}$", text_of(ROOT / "CITATION.cff"), flags=re.MULTILINE)
    assert re.search(rf"^## \[({re.escape(version)}|Unreleased)\]", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)


def test_the_page_of_python_has_every_attribute_of_a_result():
    import dcaseg

    page = text_of(DOCS / "reference/python.md")
    public = {name for name in [*dcaseg.Segmentation.__annotations__, *vars(dcaseg.Segmentation)] if name[0] != "_"}
    assert not {name for name in [*public, *dcaseg.__all__] if not re.search(rf"`[^`]*\b{name}\b[^`]*`", page)}


def test_the_readmes_python_runs(tmp_path, small_bundle, coarse_phantom):
    """The lines run as they stand in a folder with a CT. The default model is a small one, for the time it takes."""
    blocks = re.findall(r"```python\n(.*?)```", text_of(ROOT / "README.md"), flags=re.DOTALL)
    assert len(blocks) == 1
    shutil.copy(coarse_phantom / "ct.nii.gz", tmp_path)
    environment = os.environ | {"DCA_MODELS": str(small_bundle), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", blocks[0]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "labels.nrrd").exists()
