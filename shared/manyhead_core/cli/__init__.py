"""The command line: dispatch, parsers, and what a run prints."""
