"""Integer kernels in NumPy that give the very codes of TFLite's reference kernels."""
