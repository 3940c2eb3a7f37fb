"""Sketched eigendecompositions of neural-network Hessians, on a laptop and on Slurm."""

__version__ = "0.1.0.dev0"
