"""The built site in a real browser, on a desk and on a phone, and no other host within reach."""

import contextlib
import functools
import http.server
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from urllib.parse import urldefrag, urlparse

import pytest

import mcgrad
from bench import records

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MADE = shutil.ignore_patterns("_build", "generated", "notebooks", "__pycache__")
WIDTHS = {"desk": 1280, "phone": 390}
SOURCES = {
    **{
        path.relative_to(DOCS).with_suffix("").as_posix(): path
        for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("losses/*.md")])
    },
    **{f"notebooks/{path.stem}": path for path in sorted(ROOT.glob("notebooks/*.ipynb"))},
}
PAGES = [*SOURCES, "genindex", "search"]

# What a reader would see of a formula that was not turned into one: text outside code.
LEFTOVERS = r"""() => {
  const found = [];
  const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const inside = node.parentElement.closest("code, pre, annotation, script, style");
    if (!inside && /\$|\\[a-zA-Z]{2,}|[_^]\{/.test(node.data)) found.push(node.data);
  }
  return found;
}"""

FLAT_FORMULAS = """() => [...document.querySelectorAll("article math")].filter(math => {
  const box = math.getBoundingClientRect();
  return !(box.width > 2 && box.height > 2);
}).map(math => math.textContent)"""

BROKEN_IMAGES = """() => [...document.images].filter(
  image => !(image.complete && image.naturalWidth > 0)).map(image => image.src)"""

# A table, a formula or code may scroll inside itself; the theme would let all of the text scroll.
TOO_WIDE = """() => [...document.querySelectorAll(".content *")].filter(element => {
  const box = element.getBoundingClientRect();
  if (box.width === 0 || box.right <= window.innerWidth + 1) return false;
  for (let outer = element; !outer.matches(".content"); outer = outer.parentElement) {
    if (["auto", "scroll"].includes(getComputedStyle(outer).overflowX)) return false;
  }
  return true;
}).map(element => element.outerHTML.slice(0, 200))"""

LINKS = "() => [...document.querySelectorAll('a[href]')].map(link => link.href)"
IDS = "() => [...document.querySelectorAll('[id]')].map(element => element.id)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built from a copy: warnings are errors."""
    for module in ("sphinx", "myst_nb", "furo", "pypandoc", "ziamath"):
        pytest.importorskip(
            module, reason=f"the site is built with {module}: pip install '.[docs]'"
        )
    copy = tmp_path_factory.mktemp("repository")
    shutil.copytree(DOCS, copy / "docs", ignore=MADE)
    for folder in ("bench", "notebooks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=MADE)
    shutil.copy(ROOT / "CHANGELOG.md", copy)
    html = copy / "docs" / "_build" / "html"
    command = ["sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html", copy / "docs", html]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return html


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served, on the loopback alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium, a program that pip cannot install: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install '.[docs]'"
    )
    # The sandbox of Chromium refuses to run as root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(chromium, address, width=1280):
    """A page of the browser and the list of what went wrong on it."""
    context = chromium.new_context(viewport={"width": width, "height": 900})
    wrong = []

    def route(request):
        if request.request.url.startswith(address):
            request.continue_()
        else:
            wrong.append(f"asked for {request.request.url}")
            request.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on(
        "response",
        lambda answer: wrong.append(f"{answer.status}: {answer.url}") if not answer.ok else None,
    )
    yield page, wrong
    context.close()


def has_formulas(source):
    text = source.read_text()
    if source.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return "$" in re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def test_the_pages_are_those_of_the_sources(site):
    built = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert built == set(PAGES)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page(chromium, address, name, width):
    with opened(chromium, address, WIDTHS[width]) as (page, wrong):
        page.goto(f"{address}/{name}.html")
        page.evaluate("() => document.fonts.ready.then(() => true)")
        assert wrong == []
        assert page.title() and page.locator("h1").count() == (name != "search")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= WIDTHS[width]
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(BROKEN_IMAGES) == []
        assert page.evaluate(LEFTOVERS) == []
        formulas = page.locator("article math").count()
        if name in SOURCES and has_formulas(SOURCES[name]):
            assert formulas > 0
        if formulas:
            assert page.evaluate(FLAT_FORMULAS) == []
            assert page.evaluate(
                "() => [...document.fonts].some("
                "font => font.family.includes('STIX') && font.status === 'loaded')"
            )


def test_every_internal_link_leads_somewhere(chromium, address):
    with opened(chromium, address) as (page, _):
        links, ids = {}, {}
        for name in PAGES:
            url = f"{address}/{name}.html"
            page.goto(url)
            ids[url] = set(page.evaluate(IDS))
            for link in page.evaluate(LINKS):
                if link.startswith(address):
                    links.setdefault(link, name)
        assert len(links) > 10 * len(PAGES)
        for target in {urldefrag(link).url for link in links}:
            answer = page.request.get(target)
            assert answer.ok, (target, answer.status)
        broken = {
            link: source
            for link, source in links.items()
            if (part := urldefrag(link)).fragment and part.fragment not in ids.get(part.url, ())
        }
        assert broken == {}


def test_links_out_of_the_site_are_few_and_of_known_hosts(chromium, address):
    """Nothing is loaded from them; the reader may go there."""
    with opened(chromium, address) as (page, _):
        hosts = set()
        for name in PAGES:
            page.goto(f"{address}/{name}.html")
            links = page.evaluate(LINKS)
            hosts |= {urlparse(link).netloc for link in links if not link.startswith(address)}
    assert hosts <= {"github.com", "keepachangelog.com", "pradyunsg.me", "semver.org"}


def test_the_search_finds_a_loss(chromium, address):
    with opened(chromium, address) as (page, wrong):
        page.goto(f"{address}/search.html?q=covariance")
        page.wait_for_selector("#search-results li a")
        results = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
        assert any("losses/task_covariance" in link for link in results)
        assert wrong == []


def equations(docstring):
    """The indented blocks of a docstring outside its sections, as they stand there."""
    sections = r"^(Args|Attributes|Example|Raises|References|Returns):"
    blocks, section, lines, before = [], False, [], ""
    for line in [*docstring.splitlines(), ""]:
        if line and not line.startswith(" "):
            section = bool(re.match(sections, line))
        if line.startswith(" ") and not section and (lines or before == ""):
            lines.append(line)
        elif lines:
            blocks.append(textwrap.dedent("\n".join(lines)))
            lines = []
        before = line
    return blocks


@pytest.mark.parametrize("name", [name for name in mcgrad.__all__ if name != "LOSSES"])
def test_the_reference_shows_equations_and_examples_as_they_stand(chromium, address, name):
    docstring = inspect.getdoc(getattr(mcgrad, name))
    with opened(chromium, address) as (page, _):
        page.goto(f"{address}/api.html")
        entry = page.locator(f"dl:has(> dt[id='mcgrad.{name}'])")
        shown = [text.rstrip("\n") for text in entry.locator("pre").all_inner_texts()]
        for equation in equations(docstring):
            assert equation in shown
        text = entry.inner_text()
    example = re.search(r"^Example:\n((?:    .*\n?)+)", docstring, re.MULTILINE)
    if example:
        assert textwrap.dedent(example.group(1)).rstrip("\n") in shown
    assert "`" not in text and "::" not in text and "\\*" not in text


def test_the_table_of_the_bench_is_that_of_the_committed_run(chromium, address):
    run = records.read(ROOT / "bench" / "results" / "cpu.json")
    with opened(chromium, address) as (page, _):
        page.goto(f"{address}/bench.html")
        head, *rows = page.locator("table.bench tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        text = page.locator("article").inner_text()
    for case in run.cases:
        (row,) = [row for row in rows if row[0].split(":")[0] == case.case]
        for name in ("floor", "autodiff", "PyTorch"):
            ratio = records.ratio(case.sides, name, "mcgrad")
            assert row[head.index(name)] == ("" if ratio is None else f"{ratio:.2f}")
    machine = run.machine
    for fact in (machine["date"], machine["cpu"], *filter(None, machine["versions"].values())):
        assert fact in text


def test_what_is_not_a_formula_is_a_warning(tmp_path, site):
    (tmp_path / "index.md").write_text("# Wrong\n\nThe sum $\\frac{a$ is not one.\n")
    settings = f"""
import sys
sys.path.insert(0, {str(DOCS)!r})
extensions = ["myst_parser", "mathml"]
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
"""
    (tmp_path / "conf.py").write_text(settings)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", tmp_path, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and r"not a formula: \frac{a" in done.stderr
