"""The demo: rendered clips, a small model, a stand-in engine, and the run."""
