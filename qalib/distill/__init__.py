"""Answer distillation (Hu et al. 2018): an ensemble teaches a single reader."""
