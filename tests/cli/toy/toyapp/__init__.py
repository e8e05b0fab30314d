"""A three-feature logistic regression: the smallest app that the command line can train."""
