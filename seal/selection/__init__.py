"""Selectors on disk: the artefact, published files, and the one-pass scorers."""
