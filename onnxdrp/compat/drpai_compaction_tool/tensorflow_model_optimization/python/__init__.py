"""Where TensorFlow Model Optimization has its sources."""
