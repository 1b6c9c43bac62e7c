"""The guides run as they stand, and print what they say.

They run in this process, so that torch is loaded once. What a guide claims it asserts itself; the figures here are the
same on every machine.
"""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "examples" / "guides").glob("*.py"))

#: Pieces of what guides print, by the guide's name.
PRINTED: dict[str, tuple[str, ...]] = {
    "batch_norm": (
        "fifty steps, as in torch.nn to 1e-9: loss",
        "got an input of shape [1, 8]",
        "averages of five models: [5, 8]",
    ),
    "capsule_routing": (
        "iterations: 1  length where votes agree 0.900, where not 0.244",
        "iterations: 5  length where votes agree 0.971, where not 0.006",
        "cosine between the exact gradient and the cut one: 0.985",
    ),
    "containers_and_functions": (
        "Linear is immutable, so 'weight' cannot be set",
        "37 parameters, 37 trained, 0 elements in buffers",
    ),
    "debugging": (
        "ShapeError: linear: the last dimension of x must be in_features=4, got shape [5, 3].",
        "'layers.0.bias'    not differentiated: it is frozen",
        "check_numerics: the output of 'layers.1' (Lambda)",
        "Changed since the last trace: argument 1 from 0.1 to 0.2.",
        "drawn: difference.png, gradients.png, magnitudes.png, ratios.png",
    ),
    "ensembles_and_soups": ("'layers.0.weight': [8, 32, 64]", "a soup of strangers:"),
    "from_jax": ("batch axes are native: [7, 5, 2]", "traced once for two calls: CacheInfo(hits=1, misses=1, size=1)"),
    "from_make_functional": ("torch.func on batch normalisation: RuntimeError", "ensemble of four agrees: [4, 5, 3]"),
    "from_modules": ("5 native, 0 opaque, 65 parameters", "a gradient for each sample: [6, 8, 4]"),
    "many_nodes": (
        "ResNet-50: 25,557,032 parameters, 8.2 GFLOPs forward per sample",
        "    8192          204.4          306.6           268.3           25.5",
        "GPT-2 small: 124,439,808 parameters",
        "    8192          995.4         1493.1          1306.6          124.3",
    ),
    "meta_learning": ("by hand and by pn.meta the same gradient", "the last layer alone adapts"),
    "own_layer": ("on meta: 1,000,001,000,001 parameters",),
    "per_sample_gradients": ("a leaf of the gradients: [200, 32, 64]", "most informative leaf: layers.2.bias"),
    "performance": (
        "three Python numbers are three traces, three tensors are one: CacheInfo(hits=2, misses=4, size=4)",
        "sixteen blocks keep 1536 KiB for the backward pass, with remat 272 KiB",
    ),
    "training_to_export": ("goes on after step 30", "bitwise the same network", "['accuracy'], 7,210 parameters"),
}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_guide(guide: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide runs to its end without a warning; its assertions hold, and it prints these figures."""
    monkeypatch.setattr(sys, "argv", [str(guide)])
    runpy.run_path(str(guide), run_name="__main__")
    printed = capsys.readouterr().out
    assert [piece for piece in PRINTED[guide.stem] if piece not in printed] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_imports_are_public(guide: Path) -> None:
    """Guides use the public API alone: no name with a leading underscore is imported or reached."""
    text = guide.read_text()
    reached = re.findall(r"\b(?:pn|purenn|bridge)(?:\.\w+)*\.(_\w+)", text)
    imported = re.findall(r"^from (?:purenn|bridge)\S* import .*\b(_\w+)", text, re.MULTILINE)
    assert reached + imported == []
