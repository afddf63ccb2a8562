"""Calibration and quantization to QDQ."""
