"""Phase 2: the classifier and the last BatchNorm, adapted to a higher resolution."""
