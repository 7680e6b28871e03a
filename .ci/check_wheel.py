"""Build the wheel, see that it holds every file of the package, and start the command line from it alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(folder: Path) -> None:
    """Build into `folder / "dist"`, unpack into `folder / "site"`, run `hf-mpruner --help` with only that on the path.

    Raises:
        SystemExit: if a file of `src/hf_mpruner` is missing in the wheel, or another copy than the wheel's was imported.
    """
    # setuptools packs whatever an older build left here.
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    dist, site = folder / "dist", folder / "site"
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(dist), str(ROOT)], check=True)
    (wheel,) = dist.glob("*.whl")
    source = ROOT / "src"
    wanted = {p.relative_to(source).as_posix() for p in (source / "hf_mpruner").rglob("*") if p.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    packed = set(zipfile.ZipFile(wheel).namelist())
    if missing := sorted(wanted - packed):
        raise SystemExit(
            f"{wheel.name} lacks {missing}. Does a folder lack __init__.py, or setup.cfg a pattern in package_data?"
        )
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import hf_mpruner; print(hf_mpruner.__file__)"]
    found = subprocess.run(where, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    if not Path(found).is_relative_to(site):
        raise SystemExit(f"imported {found.strip()} instead of the wheel's copy in {site}")
    subprocess.run(
        [sys.executable, str(site / "bin" / "hf-mpruner"), "--help"], cwd=folder, env=environment, check=True
    )
    print(f"{wheel.name}: {len(packed)} files, {wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
