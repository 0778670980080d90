"""Where what is computed once is kept; imports nothing heavy."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return `FONTANEL_CACHE`, else `fontanel` in the user's cache folder."""
    if folder := os.environ.get("FONTANEL_CACHE"):
        return Path(folder)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fontanel"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fontanel"
