"""Samples: images and arrays, streamed and preprocessed."""
