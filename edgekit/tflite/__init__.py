"""TFLite models written straight from a quantized graph: the library of the targets that run ``.tflite`` files."""
