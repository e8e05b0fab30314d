"""Seeds x folds x variants of one config, each a run of its own, and the table of them."""
