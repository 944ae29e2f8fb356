"""How the method works on one instance, as one picture."""

from __future__ import annotations

from transfiner_refine.explain.files import explain_files
from transfiner_refine.explain.picture import Names, explain

__all__ = ["Names", "explain", "explain_files"]
