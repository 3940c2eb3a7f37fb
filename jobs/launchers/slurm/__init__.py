"""Tasks as jobs of Slurm: asked (scheduler), told (script), within a job (inside, task)."""
