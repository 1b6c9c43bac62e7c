"""The package and its public types under a static type checker."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_static_types() -> None:
    """basedpyright finds no error in purenn, bridge and the type assertions of this folder."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    report = json.loads(done.stdout or "null")
    assert report is not None, done.stderr
    problems = [
        f"{Path(item['file']).relative_to(ROOT)}:{item['range']['start']['line'] + 1}: {item['message']}"
        for item in report["generalDiagnostics"]
        if item["severity"] in ("error", "warning")
    ]
    assert problems == []
    files = [file for folder in ("purenn", "bridge") for file in (ROOT / folder).rglob("*.py")]
    assert report["summary"]["filesAnalyzed"] > len(files)
