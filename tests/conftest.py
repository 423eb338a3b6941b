"""A conftest's folder is on the path of all tests below it, so they can import the helper modules beside this file."""
