"""Many points: grids of parameters cut into tasks, where tasks are run, where their results are kept, and what they depend on."""
