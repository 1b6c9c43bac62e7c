"""What is released: one wheel with both packages and nothing else, one version, and pages of reference.

That the wheel works in an environment with nothing but the core dependencies is shown by tests/release.sh.
"""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bridge
import purenn as pn

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    assert file.name == f"purenn-{pn.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(file)


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(wheel.read(f"purenn-{pn.__version__}.dist-info/METADATA").decode())


def test_wheel_has_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Every file of purenn and bridge is in the wheel, type marker included; tests, examples and folders are not."""
    packaged = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("purenn", "bridge")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert packaged == sources
    assert {"purenn/py.typed", "bridge/py.typed"} <= packaged


def test_wheel_carries_the_license(wheel: zipfile.ZipFile) -> None:
    """The license's text is inside, and its name is in the metadata."""
    stored = wheel.read(f"purenn-{pn.__version__}.dist-info/licenses/LICENSE").decode()
    assert stored == (ROOT / "LICENSE").read_text()
    assert metadata_of(wheel)["License-Expression"] == "Apache-2.0"


def test_core_dependencies(wheel: zipfile.ZipFile) -> None:
    """Without an extra there are five dependencies."""
    required = [Requirement(line) for line in metadata_of(wheel).get_all("Requires-Dist") or []]
    core = {requirement.name for requirement in required if requirement.marker is None}
    assert core == {"torch", "optree", "attrs", "jaxtyping", "safetensors"}


def test_extras_are_not_needed_for_importing() -> None:
    """Both packages are imported where none of the libraries can be that belong to extras."""
    others = (
        "beartype",
        "dp_accounting",
        "hypothesis",
        "jax",
        "matplotlib",
        "onnx",
        "opacus",
        "pytest",
        "rich",
        "sklearn",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import purenn, bridge"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_version_is_in_one_place(wheel: zipfile.ZipFile) -> None:
    """Code, metadata and citation say the same version, and only one file of code has it."""
    version = pn.__version__
    assert metadata_of(wheel)["Version"] == version
    assert importlib.metadata.version("purenn") == version
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    having = [path for path in (ROOT / "purenn").rglob("*.py") if f'"{version}"' in path.read_text()]
    assert having == [ROOT / "purenn" / "_version.py"]


def test_changelog_and_citation_are_of_this_version() -> None:
    """The newest entry of the changelog and the citation file name the version."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == pn.__version__
    citation = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == pn.__version__
    assert citation["license"] == "Apache-2.0"


def test_reference_pages(tmp_path: Path) -> None:
    """The reference is written without warnings; functions show their shapes, and containers their fields."""
    script = [sys.executable, "-W", "error::UserWarning", str(ROOT / "tests" / "reference_pages.py"), str(tmp_path)]
    done = subprocess.run(
        [*script, "bridge", "purenn.privacy", "purenn.layers.capsule.primary", "purenn.layers.linear"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    pages = {
        name: re.sub(r"<[^>]+>", "", (tmp_path / f"{name}.html").read_text()).replace("&#39;", "'")
        for name in ("bridge", "purenn/layers/linear")
    }
    linear = re.sub(r"\s+", " ", pages["purenn/layers/linear"])
    assert "linear( p: Linear, x: jaxtyping.Float[Tensor, '*batch in_features'])" in linear
    assert "Linear( weight: jaxtyping.Float[Tensor, 'out_features in_features']" in linear
    for name in bridge.__all__:
        assert name in pages["bridge"]
