"""The two commands of the README that set everything up."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/setup_environment.py of a project in a temporary folder, with pip and venv replaced by records of calls."""
    (tmp_path / "tools").mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(TOOLS / "setup_environment.py", tmp_path / "tools")
    spec = importlib.util.spec_from_file_location("setup_copy", tmp_path / "tools" / "setup_environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []
    module.code = 0

    def create(folder: Path, with_pip: bool) -> None:
        module.PYTHON.parent.mkdir(parents=True)
        module.PYTHON.touch()
        module.calls.append("venv")

    def call(command: list[str]) -> int:
        module.calls.append(command[-1])
        return int(module.code)

    monkeypatch.setattr(module.venv, "create", create)
    monkeypatch.setattr(module.subprocess, "call", call)
    return module


def test_the_tools_need_the_standard_library_only() -> None:
    for name in ("quickstart.py", "test.py", "setup_environment.py"):
        for node in ast.walk(ast.parse((TOOLS / name).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in names:
                assert module.split(".")[0] in {*sys.stdlib_module_names, "setup_environment"}, (name, module)


def test_installing_twice_installs_once(setup: ModuleType) -> None:
    setup.install()
    setup.install()
    assert setup.calls == ["venv", str(setup.ROOT)]


def test_the_test_extra_is_added_and_contains_the_rest(setup: ModuleType) -> None:
    setup.install()
    setup.install("test")
    setup.install("test")
    setup.install()
    assert setup.calls == ["venv", str(setup.ROOT), f"{setup.ROOT}[test]"]


def test_a_failed_installation_is_said_and_tried_again(setup: ModuleType) -> None:
    setup.code = 1
    with pytest.raises(SystemExit, match="pip failed with exit code 1"):
        setup.install()
    setup.code = 0
    setup.install()
    assert setup.calls == ["venv", str(setup.ROOT), str(setup.ROOT)]


def test_changed_requirements_are_installed(setup: ModuleType) -> None:
    setup.install()
    with (setup.ROOT / "constraints.txt").open("a") as file:
        file.write("six==1.17.0\n")
    setup.install()
    assert setup.calls == ["venv", str(setup.ROOT), str(setup.ROOT)]


def test_an_old_python_is_told_so(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer"):
        setup.install()
    assert setup.calls == []


def test_constraints_pin_what_the_project_needs() -> None:
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    needed = {
        line.strip().strip('",').split(">")[0].split("[")[0].lower() for line in block.splitlines() if ">=" in line
    }
    needed = {name for name in needed if name and " " not in name}
    assert {"torch", "torchvision", "lightning", "timm"} <= needed
    assert needed <= set(pinned), needed - set(pinned)


@pytest.mark.slow
def test_quickstart_from_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    done = subprocess.run(
        [sys.executable, "tools/quickstart.py"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Six heads on DigitScenes" in done.stdout
    page = (clone / "runs/compare/quickstart/report.html").read_text()
    assert "data:image/png;base64" in page
