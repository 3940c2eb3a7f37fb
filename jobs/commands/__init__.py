"""What a person types and sees: one subcommand a file, all of them listed in `mount`."""
