"""Each system that has a preset, from init to the day on which everything is lost."""
