"""From an ONNX graph to a TFLite model: layouts, then one operator after the other."""
