"""What the workbench does: reads a student, makes it small, trains it, exports and evaluates it."""
