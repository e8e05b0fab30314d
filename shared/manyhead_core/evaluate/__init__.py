"""From a table of predictions to metrics with intervals, comparisons and one HTML page."""
