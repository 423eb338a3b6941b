"""Shared types and maths. Imports torch and nothing else."""
