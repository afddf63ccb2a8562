"""The straight line: capture, quantize, compile, measure, report. Each step's product is kept."""
