"""Shell scripts in the place of compilers."""


def script(path, text):
    """Writes it where it can be run; the path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)
