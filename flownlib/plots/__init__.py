"""Every figure and widget, in one style."""
