"""A Hub on the loopback: what the real clients ask for, from memory, with errors on order. `kit` is the way in."""
