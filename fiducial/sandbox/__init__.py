"""Running code that nobody vouches for: bubblewrap behind a small interface, and the harness that judges inside it.

Standard library only, so that the processes that start sandboxes are small. `docs/sandbox.md` says what it keeps out.
"""
