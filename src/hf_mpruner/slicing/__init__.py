"""A checkpoint on disk is cut tensor by tensor, without a model's weights."""
