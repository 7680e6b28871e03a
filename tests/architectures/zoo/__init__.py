"""A tiny model of every model type of the installed transformers, to try cuts on."""
