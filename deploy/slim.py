"""Takes out of a service's environment what its libraries ship and the service never opens. Runs in the image's build.

`slim.py SITE_PACKAGES`. Each entry has its reason, and one that no longer finds its file ends the build: after an
upgrade somebody has to look again. That nothing taken was needed is shown by deploy/panel_smoke.py, right behind it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

# Other people's tests and C headers, whatever the package.
FOLDERS = ("tests", "include")
# By package, only where it is installed: path or pattern below site-packages, and why it can go.
FILES = {
    "pyarrow": {
        "pyarrow/libarrow_flight.so.*": "Arrow's own network service; the panel speaks gRPC and HTTP",
        "pyarrow/libarrow_python_flight.so*": "its binding",
        "pyarrow/_flight.*": "its Python module",
        "pyarrow/libarrow_s3.so.*": "Arrow's client of S3; the panel reads the depot by signed links",
        "pyarrow/_s3fs.*": "its Python module",
        # A wheel holds no links: the loader asks for the one with the first number, the others are copies of it.
        "pyarrow/libarrow_python.so": "copy for linking",
        "pyarrow/libarrow_python.so.*.*": "copy under the full version",
        "pyarrow/src": "C++ sources",
    },
}


def main(site: Path) -> None:
    freed = sum(_take(folder) for name in FOLDERS for folder in sorted(site.glob(f"**/{name}")) if folder.is_dir())
    for package, entries in FILES.items():
        if (site / package).is_dir():
            freed += sum(_take_all(site, pattern) for pattern in entries)
    print(f"{freed / 2**20:.0f} MiB taken out of {site}")


def _take_all(site: Path, pattern: str) -> int:
    found = sorted(site.glob(pattern))
    if not found:
        sys.exit(f"deploy/slim.py: nothing is {pattern} any more; see what this version of the package brings instead")
    return sum(map(_take, found))


def _take(path: Path) -> int:
    """Returns the bytes; 0 for what went with a folder around it."""
    if path.is_dir():
        freed = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
        return freed
    if not path.exists():
        return 0
    freed = path.stat().st_size
    path.unlink()
    return freed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
