"""Where a prediction comes from: heat maps, galleries, files for viewers."""
