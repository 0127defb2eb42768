"""Beam transforms: from event tables to query-conditioned user embeddings."""
