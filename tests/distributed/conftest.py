"""The scripts are started by the tests; they are no tests, nor modules with examples."""

collect_ignore = ["scripts"]
