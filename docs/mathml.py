"""Formulas as MathML, which a browser shows by itself: no script, no picture, no network.

Pandoc turns TeX into MathML, one call for all the formulas of a page; what it cannot read is a
warning. The letters are those of STIX Two Math, cut down to what mathematics needs: few phones have
a font with the tables by which brackets, roots and sums grow.
"""

import html
import re
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pypandoc
from docutils import nodes
from fontTools import subset
from sphinx.application import Sphinx
from sphinx.util import logging

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", NAMESPACE)

FONT = "STIXTwoMath.woff2"
# Latin and Greek, accents, dashes and primes, arrows and operators, the brackets that grow, and the
# bold, italic, script and double-struck letters.
LETTERS = [
    (0x0020, 0x007E),
    (0x00A0, 0x00F7),
    (0x0300, 0x0338),
    (0x0391, 0x03F6),
    (0x2010, 0x2064),
    (0x2102, 0x2134),
    (0x2190, 0x21D5),
    (0x2200, 0x22FF),
    (0x2308, 0x230B),
    (0x239B, 0x23E1),
    (0x27E8, 0x27EB),
    (0x2A7D, 0x2AB0),
    (0x1D400, 0x1D467),
    (0x1D49C, 0x1D4CF),
    (0x1D538, 0x1D56B),
    (0x1D6A8, 0x1D71B),
]


def mathml(formulas: list[tuple[str, bool]]) -> list[str | None]:
    """Each formula (TeX, whether on its own line) as a <math> element; None if it is not one."""
    if not formulas:
        return []
    signs = {False: "$", True: "$$"}
    source = "\n\n".join(
        signs[alone] + " ".join(tex.split()) + signs[alone] for tex, alone in formulas
    )
    page = pypandoc.convert_text(source, "html", "markdown", extra_args=["--mathml", "--wrap=none"])
    paragraphs = re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
    if len(paragraphs) != len(formulas):
        return [None for _ in formulas]
    found = [re.fullmatch(r"<math .*?</math>", text, re.DOTALL) for text in paragraphs]
    return [match and polished(match.group()) for match in found]


def polished(element: str) -> str:
    """Primes in their own size, as they are drawn raised; the Frobenius product between spaces."""
    root = ElementTree.fromstring(element)
    for power in root.iter(f"{{{NAMESPACE}}}msup"):
        if power[1].text and set(power[1].text) <= set("′″‴"):
            power.tag = f"{{{NAMESPACE}}}mrow"
            power[1].attrib.update(lspace="0", rspace="0")
    for operator in root.iter(f"{{{NAMESPACE}}}mo"):
        if operator.text == ":":
            operator.attrib.update(lspace="0.22em", rspace="0.22em")
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def convert(app: Sphinx, page: nodes.document) -> None:
    """Give each formula of a page its `mathml`."""
    places = [*page.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))]
    formulas = [(node.astext(), isinstance(node, nodes.math_block)) for node in places]
    for node, element in zip(places, mathml(formulas), strict=True):
        if element is None:
            log = logging.getLogger(__name__)
            log.warning("not a formula: %s", node.astext(), location=node, type="mathml")
        node["mathml"] = element or html.escape(node.astext())
        keep_sign(node)


def keep_sign(node: nodes.Element) -> None:
    """Let no line begin with the punctuation that follows a formula in the text."""
    after = node.next_node(descend=False, siblings=True)
    sign = re.match(r"[,.;:)]+", after) if isinstance(after, nodes.Text) else None
    if sign:
        node["mathml"] = f'<span class="formula-and-sign">{node["mathml"]}{sign.group()}</span>'
        node.parent.replace(after, nodes.Text(after[sign.end() :]))


def visit_inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(node["mathml"])
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f"{writer.starttag(node, 'div', CLASS='formula')}{node['mathml']}</div>\n")
    raise nodes.SkipNode


def write_font(app: Sphinx, error: Exception | None) -> None:
    """The font, as ziamath carries it; its licence (SIL Open Font) stands among its names."""
    target = Path(app.outdir) / "_static" / FONT
    if error or target.exists() or app.builder.format != "html":
        return
    options = subset.Options()
    options.flavor, options.layout_features, options.name_IDs = "woff2", ["*"], ["*"]
    file = resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    with resources.as_file(file) as path:
        font = subset.load_font(path, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=[c for first, last in LETTERS for c in range(first, last + 1)])
    cutter.subset(font)
    subset.save_font(font, target, options)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    # Before Sphinx, with 500, copies the titles into the tables of contents.
    app.connect("doctree-read", convert, priority=400)
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
