"""edgekit: from a trained network to a proven int8 deployment on an edge chip."""

__version__ = "0.1.0"
