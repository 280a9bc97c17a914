"""Write docs/published.md; with a file name, the live page of one example instead."""

import sys

from tests.published.page import PAGE, live, page

if len(sys.argv) > 1:
    live(sys.argv[1])
else:
    PAGE.write_text(page(), encoding="utf-8")
