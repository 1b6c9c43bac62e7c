"""The page that the main job writes, opened in a browser and used as a reader uses it."""

import html
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import purenn as pn
from purenn.layers import conv2d, primary_capsules
from purenn.models import CapsNet, capsnet, decode
from purenn.ops import squash

EXAMPLES = Path(__file__).parents[2] / "examples"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

#: Before the page's own scripts: what goes wrong is kept.
LISTEN = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
</script>"""

#: After them: what a reader does, and what is seen then.
USE = """<script>
const all = (what) => [...document.querySelectorAll(what)];
const pixelsOf = (id) => {
  const canvas = byId(id), { width, height } = canvas;
  const copy = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(0, 0, width, height).data];
};
const change = (element, kind) => element.dispatchEvent(new Event(kind, { bubbles: true }));
const seen = { buttons: all("#gallery button").length, canvases: all("canvas").length };
seen.sliders = all("#sliders input").length;
seen.verdict = byId("verdict").textContent;
seen.first = Number(document.querySelector("#gallery [aria-pressed=true]").dataset.digit);
seen.chosen = Number(document.querySelector("[name=capsule]:checked").value);
seen.unnamed = all("button, input, select, canvas[role=img]").filter((one) =>
  !one.getAttribute("aria-label") && !one.textContent.trim() && !(one.labels && one.labels.length)).length;
seen.lengths = lengthsOf(seen.first);
seen.decoded = decode(poseOf(seen.first, seen.chosen), seen.chosen);
seen.own = pixelsOf("reconstruction");
const slider = document.querySelector("#sliders input");
slider.value = slider.max;
change(slider, "input");
seen.component = Number(slider.id.split("-")[1]);
seen.written = slider.closest(".slider").querySelector("output").textContent;
seen.moved = pixelsOf("reconstruction");
byId("reset").click();
seen.reset = pixelsOf("reconstruction");
all("[name=capsule]")[3].click();
seen.other = pixelsOf("reconstruction");
seen.votes = pixelsOf("couplings").length / 4;
const again = all("#gallery button")[5];
again.click();
seen.pressed = all("#gallery [aria-pressed=true]").map((one) => Number(one.dataset.digit));
seen.clicked = Number(again.dataset.digit);
byId("only-wrong").click();
seen.wrong = all("#gallery button").map((one) => Number(one.dataset.digit)).sort((a, b) => a - b);
byId("only-wrong").click();
byId("order").value = "class";
change(byId("order"), "change");
seen.ordered = all("#gallery button").map((one) => data.targets[Number(one.dataset.digit)]);
seen.errors = errors;
document.body.append(make("pre", { id: "seen", textContent: JSON.stringify(seen) }));
</script>"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("digits_capsnet")


@pytest.fixture
def params(example: ModuleType) -> CapsNet:
    """A network whose votes differ clearly, so that routing has something to do."""
    p = example.initial_params(pn.random.key(0), 3)
    return pn.tree.select(p).paths("classes.weight").apply(lambda w: 100 * w)


def test_couplings_make_the_poses(example: ModuleType, params: CapsNet) -> None:
    """The votes, weighted by the shares that the page shows and squashed, are the network's class capsules."""
    params = pn.tree.to(params, torch.float64)
    images = pn.random.uniform(pn.random.key(1), (3, 1, 8, 8), dtype=torch.float64)
    shares = importlib.import_module("_digits_page").couplings(params, images)
    u = primary_capsules(params.primary, conv2d(params.conv, images).relu())
    votes = torch.einsum("oidk,nik->noid", params.classes.weight, u)
    poses = squash(torch.einsum("noi,noid->nod", shares, votes))
    torch.testing.assert_close(poses, capsnet(params, images).poses, rtol=0, atol=1e-12)
    assert shares.std() > 0.01


def test_used_in_a_browser(example: ModuleType, params: CapsNet, tmp_path: Path) -> None:
    """Its scripts run without an error and without network; what it shows is what the network computes."""
    if BROWSER is None:
        pytest.skip("no browser: apt-get install -y --no-install-recommends chromium")
    data = example.digits()
    images, targets = data["test"][:40], data["test_target"][:40]
    out = capsnet(params, images)
    difficulty = out.lengths.sum(-1)
    page, picture = write(tmp_path, params, images, targets, difficulty)
    seen = used(page, tmp_path)

    assert seen["errors"] == []
    assert (seen["buttons"], seen["sliders"], seen["canvases"]) == (40, 16, 40 + 2 + 2 * 16 + 1)
    assert seen["unnamed"] == 0
    assert seen["first"] == difficulty.argmax()
    read_as = out.lengths.argmax(-1)
    assert seen["chosen"] == read_as[seen["first"]]
    assert seen["verdict"].startswith(f"A {targets[seen['first']]}, ")
    torch.testing.assert_close(torch.tensor(seen["lengths"]), out.lengths[seen["first"]], rtol=0, atol=1e-5)

    pose, label = out.poses[seen["first"]].clone(), torch.tensor(seen["chosen"])
    own = decode(params, pose, label=label).flatten()
    torch.testing.assert_close(torch.tensor(seen["decoded"]), own, rtol=0, atol=1e-5)
    pose[label, seen["component"]] += 0.5
    assert gray(seen["own"]).sub(255 * (1 - own)).abs().max() <= 1
    assert gray(seen["moved"]).sub(255 * (1 - decode(params, pose, label=label).flatten())).abs().max() <= 1
    assert seen["written"] == "+0.50"
    assert seen["reset"] == seen["own"]
    assert seen["moved"] != seen["own"]
    assert seen["other"] != seen["own"]

    assert seen["votes"] == params.classes.weight.shape[0] * params.classes.weight.shape[1]
    assert seen["pressed"] == [seen["clicked"]]
    assert seen["wrong"] == (read_as != targets).nonzero().flatten().tolist()
    assert seen["ordered"] == sorted(targets.tolist())
    assert picture.stat().st_size > 20_000


def write(folder: Path, params: CapsNet, images: Tensor, targets: Tensor, difficulty: Tensor) -> tuple[Path, Path]:
    """The page, with the scripts that use it, and the file for its screenshot."""
    page, picture = folder / "page.html", folder / "screenshot.png"
    figure = folder / "figure.png"
    pn.plots.magnitudes(params).savefig(figure)
    write_page = importlib.import_module("_digits_page").write_page
    write_page(
        page, params, images, targets, difficulty=difficulty, facts={"</script>": "<b>as text</b>"}, picture=figure
    )
    text = page.read_text()
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r'base64,[^"]*|"[\w+/=]{100,}"', "", text)) == []
    page.write_text(text.replace("<head>", f"<head>{LISTEN}", 1).replace("</body>", f"{USE}</body>"))
    return page, picture


def used(page: Path, folder: Path) -> dict[str, Any]:
    """What the scripts have seen in the browser, which says nothing on its console."""
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1280,1900"),
            *(f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'screenshot.png'}", "--dump-dom"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    assert ":CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(found[1]))


def gray(pixels: list[int]) -> Tensor:
    """The gray values of a picture in red, green, blue and opacity."""
    channels = torch.tensor(pixels, dtype=torch.float32).view(-1, 4)
    assert (channels[:, :3] == channels[:, :1]).all()
    return channels[:, 0]
