"""Where real pictures and lists of URLs are, which no repository may ship: tests that want them are skipped without."""

import os
from pathlib import Path

DATA = Path(os.environ.get("NEUCLIP_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
