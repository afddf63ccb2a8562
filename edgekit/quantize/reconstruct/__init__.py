"""Block-wise reconstruction: rounding, biases and activation ranges learned on unlabelled samples."""
