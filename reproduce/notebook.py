"""Run examples/pruning_tour.ipynb and keep what it shows, but for warnings, which name files of this machine.

python reproduce/notebook.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in a folder that is deleted afterwards; an error in one is an error here."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(EXAMPLES / "offline_data.py", folder)
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
        return client.execute(cwd=folder)


def main() -> None:
    """Read, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--notebook", type=Path, default=EXAMPLES / "pruning_tour.ipynb", help="where it is written back"
    )
    options = parser.parse_args()
    notebook = execute(nbformat.read(options.notebook, as_version=4))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.get("outputs", []) if each.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, options.notebook)


if __name__ == "__main__":
    main()
