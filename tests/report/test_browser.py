"""The page in a headless browser, from a file and without network: no errors, no sideways scrolling, cases that can be browsed."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Frames of a phone's and of a desk's width; the second is used as a reader would.
DRIVER = """<!doctype html><meta charset="utf-8"><pre id="said"></pre>
<iframe id="phone" src="index.html" style="width: 390px; height: 800px"></iframe>
<iframe id="desk" src="index.html" style="width: 1280px; height: 800px"></iframe>
<script>
addEventListener("load", () => {
  const said = {};
  for (const name of ["phone", "desk"]) {
    const root = document.getElementById(name).contentDocument.documentElement;
    said[name] = [root.clientWidth, root.scrollWidth];
  }
  const frame = document.getElementById("desk");
  const inside = frame.contentDocument;
  const style = (found) => frame.contentWindow.getComputedStyle(found);
  const part = (name) => inside.querySelector(`[data-part=${name}]`);
  const shown = () => [part("place").textContent, part("case").querySelector("h4").textContent];
  const choose = (name, value) => {
    part(name).value = value;
    part(name).dispatchEvent(new Event("change"));
    return shown();
  };
  said.first = shown();
  said.target = part("case").querySelector(".target strong").textContent;
  said.marked = [...part("case").querySelectorAll("mark")].map((mark) => mark.textContent);
  part("next").click();
  said.next = shown();
  for (const kind of ["a", "b", "both", "neither"]) said[kind] = choose("filter", kind);
  choose("a", 2);
  choose("b", 1);
  said.turned = choose("filter", "a");
  part("next").click();
  said.last = [...shown(), part("next").disabled];
  said.evil = inside.querySelectorAll("#evil").length;
  said.page = style(inside.body).backgroundColor;
  said.ink = [...inside.querySelectorAll("svg text")].map((text) => style(text).fill);
  said.nav = style(inside.querySelector("nav")).position;
  document.getElementById("said").textContent = JSON.stringify(said);
});
</script>"""


@pytest.fixture(scope="session", params=["light", "dark"])
def browsed(request, written: Path, tmp_path_factory) -> dict:
    """What the driver saw, and what the console said."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    folder = tmp_path_factory.mktemp("browser")
    shutil.copy(written / "index.html", folder)
    (folder / "driver.html").write_text(DRIVER)
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
        *("--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"),
        *(f"--blink-settings=preferredColorScheme={int(request.param == 'light')}",),
        *(f"--user-data-dir={folder / 'profile'}", (folder / "driver.html").as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = re.search(r'<pre id="said">(.+?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said, f"the page did not load: {console or done.stderr[-2000:]}"
    return {**json.loads(html.unescape(said[1])), "console": console, "scheme": request.param}


def test_nothing_is_wrong(browsed):
    assert browsed["console"] == []
    assert browsed["evil"] == 0


def test_no_sideways_scrolling(browsed):
    for name, width in (("phone", 390), ("desk", 1280)):
        inner, content = browsed[name]
        assert width - 20 <= inner <= width and content <= inner


def test_cases_are_browsed(browsed):
    assert browsed["first"] == ["1 of 5", "User u0"]
    assert browsed["target"].startswith('</script><b id="evil">')
    assert browsed["marked"] == [browsed["target"]] * 2
    assert browsed["next"] == ["2 of 5", "User u1"]


def test_filters_compare_two_systems(browsed):
    assert browsed["a"] == ["1 of 1 (of 5 users)", "User u1"]
    assert browsed["b"] == ["1 of 2 (of 5 users)", "User u2"]
    assert browsed["both"] == ["1 of 1 (of 5 users)", "User u0"]
    assert browsed["neither"] == ["1 of 1 (of 5 users)", "User u4"]
    assert browsed["turned"] == browsed["b"]
    assert browsed["last"] == ["2 of 2 (of 5 users)", "User u3", True]


def test_figures_are_readable_on_either_ground(browsed):
    ground = _lightness(browsed["page"])
    assert ground > 0.9 if browsed["scheme"] == "light" else ground < 0.2
    assert browsed["ink"] and all(abs(_lightness(ink) - ground) > 0.6 for ink in browsed["ink"])


def test_the_list_of_contents_stays_in_sight(browsed):
    assert browsed["nav"] == "sticky"


def _lightness(colour: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (0.3 * red + 0.59 * green + 0.11 * blue) / 255
