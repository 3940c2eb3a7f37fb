"""What of the commands is the own of Kronecker-factored methods."""
