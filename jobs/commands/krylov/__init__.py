"""What of the commands is the own of lanczos, trace and density."""
