"""Why an int8 network answers differently from its float original, in words, and what to do about it."""
