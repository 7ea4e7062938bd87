"""What the project shows itself with: rendered clips, a small model, a stand-in engine, and the demo's run."""
