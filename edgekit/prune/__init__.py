"""Making a graph smaller: channel groups, importance, plans, dropped blocks, sparse weights, refitting."""
