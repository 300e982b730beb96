"""Runs in the panel's container: opens every page as Streamlit does, and prints what is on it as one JSON line.

`pages.py SWEEP`: the sweep that the pages are asked for.
`troubles`: exceptions and errors that the page shows; `rows`: those of all its tables together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from streamlit.testing.v1 import AppTest

import screentest_ui

HOME = Path(screentest_ui.__file__).parent


def main() -> None:
    seen = {}
    for page in sorted(path.stem for path in (HOME / "panel_pages").glob("*.py")):
        app = AppTest.from_file(str(HOME / "panel.py"), default_timeout=60).run()
        app.switch_page(f"panel_pages/{page}.py")
        app.query_params["sweep"] = sys.argv[1]
        app.run()
        seen[page] = {
            "troubles": [str(item.value) for item in (*app.exception, *app.error)],
            "rows": sum(len(table.value) for table in app.dataframe),
        }
    sys.stdout.write(f"{json.dumps(seen)}\n")


if __name__ == "__main__":
    main()
