"""NearID on Ray: make near-identity distractors, learn identity-aware image embeddings from them, and measure them."""

__version__ = "0.1.0"
