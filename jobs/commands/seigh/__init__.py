"""What of the commands is a sketched eigendecomposition's own."""
