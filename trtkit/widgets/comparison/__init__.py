"""dashboard() and gallery(): a comparison in linked figures, and images of its object changes."""
