"""What a task does: one stage a file, with `run(context)` and a program around it."""
