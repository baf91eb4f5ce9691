"""The site builds without warnings, and headless Chromium shows its pages without errors."""

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browser import browse

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[2] / "docs"
PHONE_WIDTH = 390  # pixels
ALL_PAGES = """<!doctype html><title>all pages</title><link rel="icon" href="data:,"><body><script>
const load = (path) => new Promise((done) => {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: path, width: WIDTH, height: 800, onload: () => done(frame)});
  document.body.append(frame);
});
const check = async (path) => {
  const frame = await load(path), page = frame.contentDocument;
  const width = page.documentElement.scrollWidth;
  if (width > WIDTH) console.error(`${path} is ${width} pixels wide`);
  for (const image of page.images)
    if (!image.naturalWidth) console.error(`${path} does not show ${image.src}`);
  frame.remove();
};
(async () => { for (const path of PAGES) await check(path); document.title = "done"; })();
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; warnings are errors, also those of broken links."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, folder]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def server(site):
    """Address of the served site, and the paths that were requested in vain."""
    missing = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def send_error(self, *args):
            missing.append(self.path)
            super().send_error(*args)

    pages = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html"))]
    script = ALL_PAGES.replace("PAGES", str(pages)).replace("WIDTH", str(PHONE_WIDTH))
    (site / "all-pages.html").write_text(script)
    with ThreadingHTTPServer(("localhost", 0), partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}", missing
        server.shutdown()


def errors(console):
    """Lines of the console, without those on MathJax, which is not loaded without a network."""
    return [line for line in console if "mathjax" not in line]


def test_pages_show_without_errors(server, tmp_path):
    address, missing = server
    document, console = browse(f"{address}/all-pages.html", tmp_path)
    assert "<title>done</title>" in document
    assert not errors(console)
    assert not missing


def test_search_finds_a_method(server, tmp_path):
    document, console = browse(f"{server[0]}/search.html?q=log_prob", tmp_path)
    assert "submanifold.models.Model.log_prob" in document
    assert not errors(console)
