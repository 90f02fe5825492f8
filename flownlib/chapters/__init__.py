"""What one notebook needs and no other, a module a notebook; what several need is in `shared*`."""
