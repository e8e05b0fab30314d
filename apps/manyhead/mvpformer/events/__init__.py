"""From probabilities to seizures, and how well they agree with those that experts marked."""
