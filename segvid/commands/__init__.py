"""The commands of the program, and what they have in common."""
