"""`--mode=report`: the results of finished work folders as one HTML page, Markdown and CSV. Knows no jax."""

from collections.abc import Sequence
from pathlib import Path

TITLE = "Sequential recommendation: results"


def write(folders: Sequence[Path], out: Path) -> list[Path]:
    """Writes index.html, report.md, records.csv and experiment_NAME.csv into `out`; returns their paths.

    Raises:
      ValueError: a folder without results, or a damaged file or one of another schema; the message says what to do.
    """
    # drawing is slow to import, and a program may import this package for the sake of its name alone
    from llmsrec_jax.report import contents, markdown, page, reading, sheets

    found = reading.read(folders)
    sections = contents.sections(found)
    files = {
        "index.html": page.render(TITLE, sections),
        "report.md": markdown.render(TITLE, sections),
        **sheets.sheets(found),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in files]
