"""Model bundles: what an export writes and every other part reads."""
