"""Ranks of MPI that share the work of a task."""

from skerch.jobs.launchers.mpi.launch import launch

__all__ = ["launch"]
