"""Completions from models: the built-in sampler, traces of its decisions, `fiducial.load`, a reward model as scorer."""
