"""The commands of the command line; each returns an answer, which :mod:`edgekit.cli` prints."""
