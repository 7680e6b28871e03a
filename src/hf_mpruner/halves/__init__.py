"""The attention and the feed-forward half of a block: measured apart, and dropped where the config can say so."""
