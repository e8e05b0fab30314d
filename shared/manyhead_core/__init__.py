"""What every app of manyhead stands on: attention, training, evaluation, weights, command line."""
