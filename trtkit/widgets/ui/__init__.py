"""Building blocks of the widgets: controls, jobs, output."""
