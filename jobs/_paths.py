"""Makes `nearid_ray` and `schemas` importable from a checkout: imported first by every job script.

An installed package is found without it; `ray job submit --working-dir .` and `python jobs/X.py` need it.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
for _place in (str(_ROOT), str(_ROOT / "platform")):
    if _place not in sys.path:
        sys.path.insert(0, _place)
