"""Reference models, one folder each."""
