"""Views of the report JSON."""
