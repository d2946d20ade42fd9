"""The documentation site without a network: pages fit, search finds error messages by their text."""

import functools
import http.server
import threading

import pytest

pytest.importorskip("zensical")
from documentation import site

PAGES = ("", "decision/", "tools/", "glossary/", "verbs/export/", "errors/engine-header/", "notebooks/01_quickstart/")
MESSAGES = {
    "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed": "errors/engine-header",
    "The engine plan file is not compatible with this version of TensorRT": "errors/version-mismatch",
    "The engine plan file is generated on an incompatible device": "errors/gpu-mismatch",
    "'NoneType' object has no attribute 'create_execution_context'": "errors/none-engine",
    "has no attribute 'FP16'": "errors/tensorrt-11",
    "Missing scale and zero-point for tensor": "errors/calibration-cache",
    "Static dimension mismatch while setting input shape": "errors/shape-mismatch",
}
LIST_RESULTS = """() => {
  const found = [];
  const walk = (root) => root.querySelectorAll("*").forEach((element) => {
    if (element.shadowRoot) walk(element.shadowRoot);
    if (root !== document && element.tagName === "A") found.push(element.getAttribute("href"));
  });
  walk(document);
  return found;
}"""
"""Links of the search's results, which are in a shadow root."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The site with notebooks that were not executed, served here."""
    folder = tmp_path_factory.mktemp("documentation")
    problems = site.build(folder, draft=True)
    assert not problems

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder / "site"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def open_page(page_maker, address):
    """Opens a page in which every request to another host is refused and counts as an error."""
    contexts, problems = [], []

    def route(request):
        if request.request.url.startswith((address, "data:", "blob:")):
            request.continue_()
        else:
            problems.append(request.request.url)
            request.abort()

    def open_page(path, **settings):
        contexts.append(page_maker.new_context(**settings))
        contexts[-1].route("**/*", route)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1600])
def test_pages_fit_the_window(open_page, address, width, scheme):
    page = open_page("", viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in PAGES:
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in background.removeprefix("rgb(").rstrip(")").split(",")[:3])
        assert (brightness < 150) == (scheme == "dark"), background


def test_search_finds_each_error_message_by_its_text(open_page):
    page = open_page("", viewport={"width": 1200, "height": 900})
    page.wait_for_load_state("networkidle")
    page.locator(".md-search__button").click()
    field = page.locator("input").locator("visible=true").first
    for message, expected in MESSAGES.items():
        field.fill(message)
        page.wait_for_function(
            f"(expected) => ({LIST_RESULTS})().some((link) => link.includes(expected))", arg=expected
        )
