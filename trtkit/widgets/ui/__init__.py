"""Building blocks of the widgets: controls, figures, jobs, static output."""
