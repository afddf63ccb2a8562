"""TFLite models written straight from a quantized graph, for the targets that run ``.tflite`` files."""
