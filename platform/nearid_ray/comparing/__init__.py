"""Several runs side by side: what was set differently, what came out, and whether the difference means anything."""
