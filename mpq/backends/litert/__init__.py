"""LiteRT (TensorFlow Lite): a file whose weights are our codes."""
