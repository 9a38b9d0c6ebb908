"""One experiment for each classic sequence task; `python -m experiments` lists them."""
