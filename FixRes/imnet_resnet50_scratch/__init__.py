"""Phase 1: ResNet-50 from scratch at a low resolution."""
