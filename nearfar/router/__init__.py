"""Which model answers: signals, scores, cascades, policies and the decision log."""
