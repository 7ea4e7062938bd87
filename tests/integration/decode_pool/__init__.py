"""The pool of decoders, on real processes that crash, hang and take what they can."""
