"""Run a model as if some of its blocks were not there: each hands on what it is given."""
