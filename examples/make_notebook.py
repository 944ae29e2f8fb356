"""Writes walkthrough.ipynb from the cells of walkthrough.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent


def notebook() -> str:
    """The notebook's JSON."""
    text = re.sub(r"  # noqa: E402$", "", (HERE / "walkthrough.py").read_text(), flags=re.MULTILINE)
    cells = []
    for number, part in enumerate(re.split(r"^# %%", text, flags=re.MULTILINE)[1:]):
        mark, _, body = part.partition("\n")
        is_text = "markdown" in mark
        source = re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE) if is_text else body.strip()
        cell = {"cell_type": "markdown" if is_text else "code", "id": f"cell-{number}", "metadata": {}}
        cell |= {"source": source.splitlines(keepends=True)}
        cells.append(cell if is_text else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "walkthrough.ipynb").write_text(notebook())
