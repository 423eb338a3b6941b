"""Fiducial: align language models and teach them to reason. Heavy parts load when they are first used."""

__version__ = "0.1.0"


def train(recipe, **overrides):
    """Run a recipe (a path of a TOML file, or a `config.Run`) and return its run folder. See `train.loop.train`."""
    from fiducial.train import train as run_training

    return run_training(recipe, **overrides)


def load(folder, **options):
    """The policy in a Hugging Face model folder: `logits`, `logprobs`, `sample`. See `sampling.policy.Policy`."""
    from fiducial.sampling.policy import Policy

    return Policy.load(folder, **options)
