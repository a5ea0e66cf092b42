"""Answer distillation: what an ensemble of readers knows, kept on disk and taught to one reader."""
