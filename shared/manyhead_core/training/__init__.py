"""What the training of every app shares: task base, run folder, resume, progress."""
