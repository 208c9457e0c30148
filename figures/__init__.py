"""Pictures, and the data they were drawn from, side by side."""
