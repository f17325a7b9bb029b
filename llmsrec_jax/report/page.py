"""The report as one HTML page that needs nothing else: no network, no other file."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources

from llmsrec_jax.report.document import (
    Block,
    Cases,
    Cell,
    Figure,
    Folded,
    Key,
    Plain,
    Section,
    Table,
    Text,
    Warned,
)
from llmsrec_jax.report.kinds import joined
from llmsrec_jax.schema import FLOORS_AND_BOUND

# the page may run and style itself, and fetch nothing
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render(title: str, sections: Sequence[Section]) -> str:
    folder = resources.files("llmsrec_jax.report")
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    body = "\n".join(_section(section, 2, f"s{n}") for n, section in enumerate(sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1></header>
<nav aria-label="Contents">
{_contents(sections)}
</nav>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _contents(sections: Sequence[Section], above: str = "s") -> str:
    items = []
    for number, section in enumerate(sections):
        name = f"{above}{number}"
        below = _contents(section.sections, f"{name}-") if section.sections else ""
        items.append(f'<li><a href="#{name}">{escape(section.title)}</a>{below}</li>')
    return f"<ol>{''.join(items)}</ol>"


def _section(section: Section, depth: int, name: str) -> str:
    parts = [f'<section id="{name}">', f"<h{depth}>{escape(section.title)}</h{depth}>"]
    parts += [_block(block, f"{name}-block{number}") for number, block in enumerate(section.blocks)]
    parts += [_section(below, depth + 1, f"{name}-{n}") for n, below in enumerate(section.sections)]
    return "\n".join([*parts, "</section>"])


def _block(block: Block, name: str) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Warned(text):
            return f'<p class="warning" role="note"><strong>Warning:</strong> {escape(text)}</p>'
        case Plain(text):
            return f'<pre tabindex="0">{escape(text)}</pre>'
        case Folded(title, blocks):
            inner = "\n".join(_block(one, f"{name}-{n}") for n, one in enumerate(blocks))
            return f"<details><summary>{escape(title)}</summary>\n{inner}\n</details>"
        case Figure():
            return _figure(block)
        case Cases():
            return _cases(block, name)
        case Table():
            return _table(block, name)


def _table(table: Table, name: str) -> str:
    notes = table.notes()
    caption = escape(table.caption)
    numeric = table.numeric()
    lines = [
        f'<figure class="table"><figcaption>{caption}</figcaption>',
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>',
        "<thead>",
        *_heads(table, numeric),
        "</thead>",
        "<tbody>",
    ]
    for head, *cells in table.rows:
        columns = zip(cells, numeric[1:], strict=True)
        row = "".join(_cell(cell, number, notes, name) for cell, number in columns)
        lines.append(f'<tr><th scope="row">{escape(head.text)}</th>{row}</tr>')
    lines += ["</tbody>", "</table></div>"]
    if notes:
        items = [f'<li id="{name}-note{n}">{escape(note)}</li>' for note, n in notes.items()]
        lines.append(f'<ol class="notes">{"".join(items)}</ol>')
    return "\n".join([*lines, "</figure>"])


def _heads(table: Table, numeric: Sequence[bool]) -> Iterator[str]:
    if table.spans:
        spans = "".join(
            f'<th scope="colgroup" colspan="{size}">{escape(head)}</th>'
            for head, size in table.spans
        )
        yield f"<tr><td></td>{spans}</tr>"
    cells = "".join(
        f'<th scope="col"{_number(number)}>{escape(column)}</th>'
        for column, number in zip(table.columns[1:], numeric[1:], strict=True)
    )
    yield f"<tr><td></td>{cells}</tr>"


def _number(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(cell: Cell, number: bool, notes: dict[str, int], name: str) -> str:
    text = escape(cell.text).replace("± ", "±&nbsp;")  # on paper a cell may break before it
    text = f'<em class="failed">{text}</em>' if cell.failed else text
    if cell.note:
        at = notes[cell.note]
        text += f'<sup><a href="#{name}-note{at}">{at}</a></sup>'
    return f"<td{_number(number)}>{text}</td>"


def _figure(figure: Figure) -> str:
    size = f"min-width: {0.74 * figure.width:.0f}px; max-width: {1.3 * figure.width:.0f}px"
    head, rest = figure.svg.split(">", 1)
    drawing = f'{head} role="img" aria-label="{escape(figure.caption)}" style="{size}">{rest}'
    keys = f'<ul class="legend">{"".join(map(_key, figure.keys))}</ul>' if figure.keys else ""
    return (
        f'<figure class="drawing"><figcaption>{escape(figure.caption)}</figcaption>\n{keys}\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="figure">{drawing}</div></figure>'
    )


def _key(key: Key) -> str:
    colour = "currentColor" if key.series < 0 else f"var(--series-{key.series})"
    mark = f'<span aria-hidden="true" style="color: {colour}">{key.mark}</span>'
    return f"<li>{mark} {escape(key.name)}</li>"


def embedded(content: object) -> str:
    """JSON that can stand inside a script element: nothing in it ends one."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cases(cases: Cases, name: str) -> str:
    """The frame; page.js fills it."""
    content = cases.content
    models = content["models"]
    compared = [model for model in models if model not in FLOORS_AND_BOUND] or models  # at first
    if not content["cases"]:
        return "<p>There are no users.</p>"

    def choice(part: str, shown: int) -> str:
        options = "".join(
            f'<option value="{n}"{" selected" * (n == shown)}>{escape(model)}</option>'
            for n, model in enumerate(models)
        )
        return f'<label>{part.upper()} <select data-part="{part}">{options}</select></label>'

    filters = {
        **{"all": "all users", "a": "only A is right", "b": "only B is right"},
        **{"both": "both are right", "neither": "neither is right"},
    }
    options = "".join(f'<option value="{key}">{text}</option>' for key, text in filters.items())
    title = joined((content["dataset"], f"seed {content['seed']}", cases.where))
    return f"""<h3>{escape(title)}</h3>
<div class="cases">
<script type="application/json">{embedded(content)}</script>
<noscript><p>Browsing single users needs JavaScript.</p></noscript>
<p>A system is right where the item bought next is among the first 10 of its candidates, where its rank is
counted too. The lists are of the whole catalogue, without what the user had; those of
systems that write titles are of their candidates.</p>
<form class="controls">
{choice("a", models.index(compared[0]))}
{choice("b", models.index(compared[-1]))}
<label>show <select data-part="filter">{options}</select></label>
<span class="steps"><button type="button" data-part="previous">Previous</button>
<output data-part="place"></output>
<button type="button" data-part="next">Next</button></span>
</form>
<div data-part="case" aria-live="polite"></div>
</div>"""
