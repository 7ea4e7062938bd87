"""The embedder's pipeline on real files and a real store, with an encoder that sees a frame's mean colour."""
