"""A view: the verdicts of a report as a table for a spreadsheet."""

import csv
import io

from chainrule.document import Document, Math, Verdict

SUFFIX = ".csv"


def written(document: Document) -> str:
    """One line for each verdict: the section, the verdict, and the largest difference."""
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["section", "verdict", "difference"])
    for _, section in document.walk():
        title = "".join(
            s if isinstance(s, str) else s.latex if isinstance(s, Math) else s.source for s in section.title
        )
        for block in section.blocks:
            if isinstance(block, Verdict):
                lines.writerow([title, block.kind, block.difference])
    return text.getvalue()
